"""docs/commands.md lists every command, and every command keeps to what the page promises of all."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ops import cli

PAGE = Path(__file__).parents[3] / "docs" / "commands.md"

# What prints one sentence about what it has done; everything else prints data and takes --json.
TELLS_ONLY = {
    "bank key expire",
    "bank key revoke",
    "contract write",
    "database roles",
    "migrate",
    "payouts pause",
    "recover reseal",
    "payouts resume",
    "seller reset-password",
    "seller unlock",
    "shop destination add",
    "shop key expire",
    "shop key revoke",
    "shop payout approve",
    "shop payout propose",
    "shop payout reject",
    "shop resume",
    "shop suspend",
    "topology apply",
    "withdrawal approve",
    "withdrawal reject",
}


def _commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        words = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from _commands(command, words)
        else:
            yield words, command


COMMANDS = dict(_commands(typer.main.get_command(cli.app)))


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_page_lists_every_command_once() -> None:
    section = PAGE.read_text(encoding="utf-8").split("\n## Every command\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `holdfast ([^`]+)` \|", section, flags=re.MULTILINE)
    listed = [
        max((name for name in COMMANDS if f"{row} ".startswith(f"{name} ")), key=len, default=f"? {row}")
        for row in rows
    ]
    assert sorted(listed) == sorted(COMMANDS), "give each command one row in docs/commands.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_that_prints_data_takes_json(name: str) -> None:
    if name not in TELLS_ONLY:
        assert "--json" in _options(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_command_says_what_it_does(name: str) -> None:
    assert COMMANDS[name].help, name
    assert all(parameter.help for parameter in COMMANDS[name].params if parameter.param_type_name == "option")


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--why" in _options(COMMANDS[name])])
def test_command_that_is_told_why_is_told_who(name: str) -> None:
    assert "--operator" in _options(COMMANDS[name])
