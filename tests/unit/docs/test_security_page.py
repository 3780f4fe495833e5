"""docs/security.md promises a test in every row of its tables; this holds it to that."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
PAGE = (CHECKOUT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and set(line) - set("|- ") and not line.startswith(("| who ", "| item "))
]
_TEST_NAME = re.compile(r"`(test_\w+)`")


def test_every_row_says_who_what_and_control_and_names_a_test() -> None:
    assert ROWS
    for row in ROWS:
        assert len(row) == 4, row
        assert all(row), row
        assert _TEST_NAME.search(row[3]), row


def test_every_test_that_the_page_names_exists() -> None:
    written = {
        name
        for file in (CHECKOUT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert set(_TEST_NAME.findall(PAGE)) - written == set()
