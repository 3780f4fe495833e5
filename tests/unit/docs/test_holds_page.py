"""docs/holds.md promises a test in every cell; this holds it to that."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
PAGE = (CHECKOUT / "docs" / "holds.md").read_text()
_TEST_NAME = re.compile(r"`(test_\w+)`")

EVENTS = {
    "`hold_funds` again",
    "alarm before `release_at`",
    "alarm when due, payment confirmed",
    "alarm when due, payment not confirmed",
    "alarm when due, credit taken back",
    "`dispute.opened`",
    "`dispute.resolved` for the buyer",
    "`dispute.resolved` for the seller",
    "`dispute.resolved` in parts",
    "`refund.requested`, all of it",
    "`refund.requested`, a part",
    "`refund.requested`, too much",
    "`bank.credited`",
    "`bank.debited`",
    "shop suspended",
}


def _tables() -> list[list[list[str]]]:
    """Return the page's tables as rows of cells, heads first, rulers left out."""
    tables: list[list[list[str]]] = [[]]
    for line in PAGE.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if set("".join(cells)) != {"-"}:
                tables[-1].append(cells)
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def _with_events() -> list[list[list[str]]]:
    return [table for table in _tables() if table[0][0] == "event"]


def test_every_test_that_the_page_names_exists() -> None:
    written = {
        name
        for file in (CHECKOUT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(), flags=re.MULTILINE)
    }
    assert set(_TEST_NAME.findall(PAGE)) <= written


def test_every_state_meets_every_event() -> None:
    of_holds = _with_events()[0]
    assert of_holds[0] == ["event", "`held`", "`frozen`", "`released`", "`refunded`"]
    assert {row[0] for row in of_holds[1:]} == EVENTS


def test_every_cell_names_the_test_that_shows_it() -> None:
    for table in _with_events():
        for row in table[1:]:
            assert len(row) == len(table[0]), row[0]
            for cell in row[1:]:
                assert _TEST_NAME.search(cell), (row[0], cell)
