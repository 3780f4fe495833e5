"""Whoever owns the database can change the past, but not unseen: the hash chain finds it and says where."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text
from workflow_support.desk import DAY_SECONDS, database_engine
from workflow_support.events import fresh

from infra.postgres.audit import run_audit
from infra.postgres.chain import chain_postings, find_links, find_unsigned_head
from infra.postgres.ledger_store import record_postings
from infra.security.chain_heads import (
    EXPORT_FILE,
    Head,
    SignedHead,
    export_heads,
    is_signed_by,
    read_lines,
    sign_head,
    write_line,
)
from infra.security.own_keys import KeyUse, generate_own_key
from ledger.ids import new_id
from ledger.postings import Posting, PostingKind

NOW = datetime(2026, 11, 25, tzinfo=UTC)
_CHECKS = ("chain_links_follow_each_other", "chained_postings_are_unchanged", "past_postings_are_chained")


@pytest.fixture
def books(databases: object, migrated_template: str) -> Iterator[Engine]:
    """A ledger of its own, since these tests break it for good."""
    name = databases.create(template=migrated_template)  # type: ignore[attr-defined]
    with database_engine(databases.url(name)) as engine:  # type: ignore[attr-defined]
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO deployment (deployment_id, protection_day_seconds) VALUES (1, :day)"),
                {"day": DAY_SECONDS},
            )
        yield engine
    databases.drop(name)  # type: ignore[attr-defined]


def post(engine: Engine, count: int = 1) -> list[UUID]:
    postings = [Posting(PostingKind.HELD, new_id(), fresh("shop"), "s-1", "CNY", 100) for _ in range(count)]
    with engine.begin() as connection:
        record_postings(connection, postings, booked_at=NOW)
    return [posting.posting_id for posting in postings]


def chain(engine: Engine, **bound: int) -> int:
    with engine.begin() as connection:
        return chain_postings(connection, **bound)


def what_the_audit_finds(engine: Engine) -> dict[str, tuple[str, ...]]:
    with engine.connect() as connection:
        return {
            finding.check.name: finding.examples
            for finding in run_audit(connection)
            if finding.check.name in _CHECKS and not finding.ok
        }


def as_owner(connection: Connection, statement: str, **values: object) -> None:
    """Change what the triggers guard: the tests' user owns the tables, and is a superuser."""
    connection.execute(text("SET LOCAL session_replication_role = replica"))
    connection.execute(text(statement), values)


@pytest.fixture
def chained(books: Engine) -> list[UUID]:
    ids = []
    for _ in range(3):
        ids += post(books, 3)
        assert chain(books) == 3
    assert what_the_audit_finds(books) == {}
    return ids


def test_an_edited_posting_is_found_and_named(books: Engine, chained: list[UUID]) -> None:
    with books.begin() as connection:
        as_owner(connection, "UPDATE postings SET amount_minor = 101 WHERE posting_id = :id", id=chained[4])
    assert what_the_audit_finds(books) == {
        "chained_postings_are_unchanged": (f"posting {chained[4]} of link 2 was changed",)
    }


def test_a_deleted_posting_is_found_and_named(books: Engine, chained: list[UUID]) -> None:
    with books.begin() as connection:
        as_owner(connection, "DELETE FROM postings WHERE posting_id = :id", id=chained[0])
    assert what_the_audit_finds(books) == {
        "chained_postings_are_unchanged": (f"posting {chained[0]} of link 1 is gone",)
    }


def test_a_posting_put_into_the_past_is_found_and_named(books: Engine, chained: list[UUID]) -> None:
    forged = new_id()
    with books.begin() as connection:
        as_owner(
            connection,
            """
            INSERT INTO postings SELECT :forged, kind, cause_id, shop_id, seller_id, currency, debit, credit,
                                        amount_minor, booked_at, xact FROM postings WHERE posting_id = :id
            """,
            forged=forged,
            id=chained[4],
        )
    assert what_the_audit_finds(books) == {"past_postings_are_chained": (f"posting {forged} was put in",)}


def test_a_link_that_was_made_to_fit_a_changed_posting_does_not_fit_the_next(
    books: Engine, chained: list[UUID]
) -> None:
    with books.begin() as connection:
        as_owner(connection, "UPDATE chain_links SET digest = sha256('other') WHERE link_id = 2")
        as_owner(connection, "DELETE FROM chain_links WHERE link_id = 1")
    assert what_the_audit_finds(books)["chain_links_follow_each_other"] == ("link 2",)


def test_a_chain_that_was_written_anew_does_not_have_the_head_that_was_signed(
    books: Engine, chained: list[UUID]
) -> None:
    """All that stands in the database fits together again; only what left it can tell."""
    with books.connect() as connection:
        before = find_links(connection, [3])
    with books.begin() as connection:
        as_owner(connection, "UPDATE postings SET amount_minor = 101 WHERE posting_id = :id", id=chained[4])
        as_owner(connection, "DELETE FROM chain_links")
        as_owner(connection, "UPDATE chain_progress SET chained_below = '0'")
    assert chain(books) == 9
    assert what_the_audit_finds(books) == {}
    with books.connect() as connection:
        assert find_links(connection, [3]) != before


def test_a_posting_whose_transaction_is_still_open_waits_and_is_not_passed_over(books: Engine) -> None:
    """It has a lower transaction id than one that is committed: a sequence would have passed it over."""
    with books.begin() as open_one:
        late = Posting(PostingKind.HELD, new_id(), fresh("shop"), "s-1", "CNY", 100)
        record_postings(open_one, [late], booked_at=NOW)
        post(books)
        assert chain(books) == 0
    assert chain(books) == 2
    assert what_the_audit_finds(books) == {}


def test_a_backlog_is_chained_in_bounded_steps_and_each_posting_once(books: Engine) -> None:
    for _ in range(5):
        post(books, 4)
    steps = []
    while chained := chain(books, at_most=6):
        steps.append(chained)
    assert steps == [8, 8, 4]
    assert what_the_audit_finds(books) == {}


def test_two_writers_at_once_write_one_chain(books: Engine) -> None:
    post(books, 2)
    with books.begin() as first, books.begin() as second:
        assert chain_postings(first) == 2
        assert chain_postings(second) == 0
    assert what_the_audit_finds(books) == {}


def test_the_chain_goes_on_behind_a_restore_on_a_server_with_lower_transaction_ids(
    books: Engine, chained: list[UUID]
) -> None:
    """What such a restore leaves: a progress that this server will not reach for long."""
    with books.begin() as connection:
        connection.execute(text("UPDATE chain_progress SET chained_below = '9000000000'"))
    new = post(books, 2)
    assert chain(books) == 2
    assert chain(books) == 0
    assert what_the_audit_finds(books) == {}
    with books.connect() as connection:
        last = connection.execute(
            text("SELECT posting_ids FROM chain_links ORDER BY link_id DESC LIMIT 1")
        ).scalar_one()
    assert set(last) == set(new)


def test_a_links_hash_can_be_computed_without_our_code(books: Engine, chained: list[UUID]) -> None:
    with books.connect() as connection:
        links = connection.execute(
            text("SELECT *, extract(epoch FROM sealed_at) AS epoch FROM chain_links ORDER BY link_id")
        ).all()
    previous = hashlib.sha256(b"holdfast-chain-1").digest()
    for link in links:
        digest = hashlib.sha256(b"".join(bytes(one) for one in link.row_hashes)).hexdigest()
        line = f"holdfast-chain-1|{previous.hex()}|{link.link_id}|{digest}|{link.total_postings}|{link.epoch}"
        assert bytes(link.hash) == hashlib.sha256(line.encode()).digest()
        previous = bytes(link.hash)
    assert len(links) == 3


# --- heads ------------------------------------------------------------------------------------------------

KEY = generate_own_key(KeyUse.SIGN)
PUBLIC = {KEY.kid: KEY.public_jwk}


def signed_head(link: int = 1) -> SignedHead:
    return sign_head(KEY, Head(link, bytes([link]) * 32, link * 10), NOW + timedelta(seconds=link))


def test_a_signed_head_survives_being_written_and_read() -> None:
    assert read_lines([write_line(signed_head())]) == [signed_head()]
    assert is_signed_by(signed_head(), PUBLIC)


@pytest.mark.parametrize(
    "change",
    [
        {"link": 2},
        {"hash": "00" * 32},
        {"total_postings": 11},
        {"signed_at": "2026-11-26T00:00:00+00:00"},
        {"kid": "another"},
    ],
)
def test_a_head_of_which_anything_was_changed_is_not_signed(change: dict[str, object]) -> None:
    [changed] = read_lines([json.dumps(json.loads(write_line(signed_head())) | change)])
    assert not is_signed_by(changed, PUBLIC)


def test_heads_are_exported_once_and_a_half_written_line_is_written_again(tmp_path: Path) -> None:
    heads = [signed_head(1), signed_head(2), signed_head(3)]
    assert export_heads(tmp_path, lambda last: heads[:2] if last is None else []) == 2
    file = tmp_path / EXPORT_FILE
    file.write_text(file.read_text(encoding="utf-8")[:-5], encoding="utf-8")

    def above(last: SignedHead | None) -> list[SignedHead]:
        assert last is not None
        return [head for head in heads if head.head.link_id > last.head.link_id]

    assert export_heads(tmp_path, above) == 2
    assert read_lines(file.read_text(encoding="utf-8").splitlines()) == heads


def test_only_the_newest_link_is_signed_and_not_before_its_time(books: Engine, chained: list[UUID]) -> None:
    with books.begin() as connection:
        head = find_unsigned_head(connection, older_than=timedelta(minutes=1))
        assert head is not None
        assert (head.link_id, head.total_postings) == (3, 9)
