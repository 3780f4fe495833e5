"""What the proof's page says is proved has a test, and that test exists."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
PAGE = (CHECKOUT / "docs" / "proof.md").read_text(encoding="utf-8")

_FUNCTION = re.compile(r"`(test_\w+)`")
_FILE = re.compile(r"`(?:[\w/]*/)?(test_\w+\.py)`")
_CODE = re.compile(r"`((?:infra|ledger|ops|schemas|tests|workers)/[\w/.]+)`")
_SECTION = PAGE.split("## Messages and timers, one by one")[1].split("\n## ")[0]
_ROWS = [line for line in _SECTION.splitlines() if line.startswith("| ") and not line.startswith("| ---")]


def _files() -> list[Path]:
    return list((CHECKOUT / "tests").rglob("test_*.py"))


def test_every_test_that_the_page_names_exists() -> None:
    written = {
        name
        for file in _files()
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    named = set(_FUNCTION.findall(PAGE))
    assert named
    assert named <= written
    assert set(_FILE.findall(PAGE)) <= {file.name for file in _files()}


def test_every_file_that_the_page_names_exists() -> None:
    assert [path for path in _CODE.findall(PAGE) if not (CHECKOUT / path).exists()] == []


@pytest.mark.parametrize("row", [row for row in _ROWS if "`" in row])
def test_every_promise_names_what_shows_it(row: str) -> None:
    assert _FUNCTION.search(row) or _FILE.search(row)
