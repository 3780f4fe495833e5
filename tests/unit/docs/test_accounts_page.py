"""docs/accounts.md is what accountants rely on; it must say what the ledger does."""

import re
from pathlib import Path

from ledger.accounts import ASSET_KINDS, SELLER_KINDS, AccountKind
from ledger.postings import ACCOUNTS_OF

PAGE = Path(__file__).parents[3] / "docs" / "accounts.md"


def rows_below(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its two lines of header."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    table = re.findall(r"^\|(.+)\|$", section, flags=re.MULTILINE)[2:]
    return [[cell.strip().strip("`") for cell in line.split("|")] for line in table]


def test_page_lists_every_account_with_its_owner_and_side() -> None:
    listed = {row[0]: (row[1], row[2]) for row in rows_below("## The chart of accounts")}
    assert listed == {
        kind.value: (
            "seller" if kind in SELLER_KINDS else "shop",
            "debit" if kind in ASSET_KINDS else "credit",
        )
        for kind in AccountKind
    }


def test_page_lists_every_kind_of_posting_once_with_its_two_accounts() -> None:
    rows = rows_below("## The kinds of posting")
    assert [row[0] for row in rows] == [kind.value for kind in ACCOUNTS_OF]
    assert {row[0]: (row[1], row[2]) for row in rows} == {
        kind.value: (debit.value, credit.value) for kind, (debit, credit) in ACCOUNTS_OF.items()
    }


def test_every_kind_of_posting_on_the_page_says_its_cause_and_when() -> None:
    assert all(len(row) == 5 and row[3] and row[4] for row in rows_below("## The kinds of posting"))
