"""Secrets are neither committed nor typed: they come from standard input, a file or the environment."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ops import cli

CHECKOUT = Path(__file__).parents[3]

# What keys look like. Each is written so that this file does not match itself.
_SECRETS = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "a private JWK": r'"d"\s*:\s*"[A-Za-z0-9_-]{43}"',
    "an HMAC secret": r"whsec_[A-Za-z0-9+/]{32,}={0,2}",
    "a token of a code host": r"\b(?:ghp|gho|ghs|github_pat|glpat)[_-][A-Za-z0-9_]{20,}",
    "a key of a cloud": r"\bAKIA[0-9A-Z]{16}\b",
    "an encryption key or pepper": (
        r"HOLDFAST_(?:ENCRYPTION_KEY|PASSWORD_PEPPERS)=['\"]?(?:\d:)?[A-Za-z0-9+/]{43}="
    ),
}


# The private key of RFC 8037, appendix A: everybody has it.
_PUBLISHED = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"


def secrets_in(text: str) -> list[str]:
    unpublished = text.replace(_PUBLISHED, "")
    return [what for what, pattern in _SECRETS.items() if re.search(pattern, unpublished)]


def test_no_secret_is_in_the_repository() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    # Without git, as in an archive of a release, everything beside what is made here is looked at.
    files = (
        [CHECKOUT / name for name in listed.stdout.split("\0") if name]
        if listed.returncode == 0
        else [file for file in CHECKOUT.rglob("*") if ".local" not in file.parts]
    )
    found = {
        str(file.relative_to(CHECKOUT)): kinds
        for file in files
        if file.is_file() and (kinds := secrets_in(file.read_text(encoding="utf-8", errors="replace")))
    }
    assert len(files) > 100
    assert found == {}


@pytest.mark.parametrize(
    "leak",
    [
        "-----BEGIN " + "PRIVATE KEY-----",
        '{"kty": "OKP", "d": "' + "A" * 43 + '"}',
        "secret = 'whsec_" + "A" * 43 + "='",
        "ghp_" + "a" * 36,
        "AKIA" + "A" * 16,
        "HOLDFAST_ENCRYPTION_KEY=" + "A" * 43 + "=",
    ],
)
def test_the_search_for_secrets_finds_one(leak: str) -> None:
    assert len(secrets_in(f"text {leak} text")) == 1


def _parameters(group: Any, path: str = "holdfast") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _parameters(command, f"{path} {name}")
        else:
            for parameter in command.params:
                yield f"{path} {name}", parameter


def test_no_option_of_any_command_takes_a_secret() -> None:
    """What names a secret must name a file (or take a public key)."""
    suspicious = re.compile(r"password|secret|pepper|token|private|hmac|encryption", re.IGNORECASE)
    taken = {
        f"{command} {option}"
        for command, parameter in _parameters(typer.main.get_command(cli.app))
        for option in (*parameter.opts, parameter.name)
        if suspicious.search(option) and not re.search(r"[-_]file$", option)
    }
    assert taken == set()
