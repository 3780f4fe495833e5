"""A shell that asks what may come next gets commands, options, choices and types of events."""

import pytest
from typer.testing import CliRunner

from ops.cli import app


def _completions(shell: str, line: str) -> set[str]:
    """Ask as the shell's own function does, which `holdfast --show-completion` prints."""
    words = line.split(" ")
    asking = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    ran = CliRunner().invoke(
        app, prog_name="holdfast", env={"_HOLDFAST_COMPLETE": f"complete_{shell}", **asking}
    )
    assert ran.stderr == ""
    return set(ran.stdout.replace('"', " ").replace("\t", " ").replace(":", " ").split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_and_types_of_events_complete(shell: str) -> None:
    assert {"add", "list", "revoke"} <= _completions(shell, "holdfast shop key ")
    orders = _completions(shell, "holdfast contract schema order.")
    assert {"order.paid", "order.held"} <= orders
    assert "seller.enrolled" not in orders


def test_options_and_their_choices_complete() -> None:
    assert "--funding" in _completions("bash", "holdfast shop add acme --fu")
    assert _completions("bash", "holdfast shop add acme --funding ") == {"confirmed", "announced"}
