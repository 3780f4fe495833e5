"""Every `holdfast …` that a page shows is a command with options that exist, as the real one reads it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ops import cli
from schemas.currencies import CURRENCY_DIGITS

HOLDFAST: Any = typer.main.get_command(cli.app)
CHECKOUT = Path(__file__).parents[3]
PAGES = sorted([*(CHECKOUT / "docs").rglob("*.md"), CHECKOUT / "README.md", CHECKOUT / "SECURITY.md"])

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# What a page writes for a value of the reader's own, and one that the command takes.
_VALUES = {
    "…": "because",
    "...": "because",
    "T": "2026-11-23T08:00:00Z",
    "BASE64": "AAAA",
    "ID": "01a214cf-6e49-7ce5-b037-620522cf80c7",
    "KEY_ID": "01a214cf-6e49-7ce5-b037-620522cf80c7",
    "N": "3",
    "TYPE": "order.paid",
}
# Typer's own, at every command; it would print and end.
_OF_TYPER = {"--help", "--install-completion", "--show-completion"}
# What somebody copies at three in the morning is whole; elsewhere a command may be named with less.
_WHOLE_ON = {"runbook", "running", "quick-start", "README", "SECURITY"}
# Where a shell's own business begins.
_SHELL = {"|", "||", "&&", ">", ">>", "<", ";", "&"}


def _spans(page: str) -> Iterator[tuple[str, bool]]:
    """Yield what a page shows as a command line, and whether it stands in a block, else between backticks."""
    for language, block in _FENCE.findall(page):
        if language in {"console", "bash", "sh", "shell"}:
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                command = re.sub(r"^\s*\$ ", "", line).strip()
                if command.startswith("holdfast "):
                    yield command, True
    for code in re.findall(r"(?<!`)`(holdfast [^`]+)`(?!`)", _FENCE.sub("", page)):
        yield " ".join(code.split()), False


def _words(line: str) -> list[str]:
    """Split as a shell does, up to a pipe, redirection or remark; brackets only say what is optional."""
    words = []
    for word in shlex.split(line.replace("\\|", "|").replace("[", " ").replace("]", " "), comments=True)[1:]:
        if word in _SHELL:
            break
        words.append(word)
    return words


def _variants(words: list[str]) -> Iterator[list[str]]:
    """Read `approve|reject` as one command each."""
    for position, word in enumerate(words):
        if "|" in word and re.fullmatch(r"[a-z|-]+", word):
            for choice in word.split("|"):
                yield from _variants([*words[:position], choice, *words[position + 1 :]])
            return
    yield words


def problem_of(line: str, *, whole: bool = True) -> str | None:
    """Return what is wrong with a command line, as `holdfast` would say it; what it lacks only if `whole`."""
    for words in _variants(_words(line)):
        command = HOLDFAST
        path = "holdfast"
        rest = [_VALUES.get(word, word) for word in words if word not in _OF_TYPER]
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            if name not in command.commands:
                return f"{path} has no command {name}"
            command, path = command.commands[name], f"{path} {name}"
        if not rest:
            continue  # a mention by name
        try:
            command.make_context(path, _with_real_values(rest))
        except typer.TyperException as error:
            if not whole and type(error).__name__ == "MissingParameter":
                continue
            return f"{path}: {error.format_message()}"
    return None


def _with_real_values(words: list[str]) -> list[str]:
    """Shops and banks are written in capitals on the pages, as no id of one may be."""
    return [
        word.lower() if re.fullmatch(r"[A-Z_]+", word) and word not in CURRENCY_DIGITS else word
        for word in words
    ]


SHOWN = [
    pytest.param(line, in_block or page.stem in _WHOLE_ON, id=f"{page.stem}: {line}")
    for page in PAGES
    for line, in_block in dict.fromkeys(_spans(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("line", "whole"), SHOWN)
def test_command_line_of_the_docs_is_one_that_holdfast_takes(line: str, *, whole: bool) -> None:
    assert problem_of(line, whole=whole) is None


def test_the_pages_show_what_this_looks_for() -> None:
    """Else a change of how pages are written would leave nothing to check."""
    by_page = {str(param.id).split(":")[0] for param in SHOWN}
    assert {"runbook", "running", "commands", "quick-start", "README"} <= by_page
    assert len(SHOWN) > 100


@pytest.mark.parametrize(
    "line",
    [
        "holdfast sellers show acme s-1",
        "holdfast seller show acme s-1 --jsno",
        "holdfast claim add --shop acme --amount ten",
        "holdfast events replay --shop acme --since yesterday",
        "holdfast withdrawal approve|refuse acme w-1 --why …",
        "holdfast shop key revoke acme not-an-id --why …",
    ],
)
def test_a_line_that_nobody_can_give_is_found(line: str) -> None:
    assert problem_of(line) is not None
