"""The ledger in PostgreSQL: only ever added to, each effect once, sums that are always right."""

import threading
from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from workflow_support.books import balance, what_is_wrong
from workflow_support.events import fresh
from workflow_support.races import side_by_side

from infra.postgres.ledger_store import (
    SellerCurrency,
    lock_available,
    read_seller_balances,
    record_postings,
    seal_postings,
)
from ledger.errors import ConflictingPosting
from ledger.ids import new_id
from ledger.postings import MAX_AMOUNT_MINOR, Posting, PostingKind


@pytest.fixture(autouse=True)
def _books_stay_right(engine: Engine) -> Iterator[None]:
    yield
    # These tests post without orders and withdrawals behind it, so only the ledger's own promises count.
    about_postings = {
        "the ledger sums to zero in each currency",
        "a stored withdrawable balance equals its postings",
        "no seller's account is negative",
    }
    assert not about_postings & what_is_wrong(engine).keys()


def post(engine: Engine, *postings: Posting) -> None:
    with engine.begin() as connection:
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        record_postings(connection, postings, booked_at=now)


def a_posting(
    kind: PostingKind, shop: str, amount: int, *, seller: str = "s-1", cause: UUID | None = None
) -> Posting:
    return Posting(kind, cause or new_id(), shop, seller, "CNY", amount)


def released(shop: str, amount: int, *, seller: str = "s-1") -> list[Posting]:
    """Money that came in, was held and released."""
    cause = new_id()
    return [
        a_posting(kind, shop, amount, seller=seller, cause=cause)
        for kind in (PostingKind.HELD, PostingKind.RELEASED)
    ]


@pytest.mark.parametrize(
    "change",
    ["UPDATE postings SET amount_minor = amount_minor + 1", "DELETE FROM postings", "TRUNCATE postings"],
)
def test_a_posted_row_can_not_be_changed_or_removed(engine: Engine, change: str) -> None:
    """The connection is the owner's and a superuser's: even they are refused."""
    shop = fresh("shop")
    post(engine, *released(shop, 100))
    with pytest.raises(DBAPIError, match="rows are only ever inserted"), engine.begin() as connection:
        connection.execute(text(change))
    assert balance(engine, shop, "s-1") == {"available": 100, "received": -100}


def test_the_same_posting_twice_moves_nothing_the_second_time(engine: Engine) -> None:
    shop = fresh("shop")
    postings = released(shop, 100)
    post(engine, *postings)
    post(engine, *postings)
    assert balance(engine, shop, "s-1")["available"] == 100


def test_the_same_posting_twice_in_one_call_moves_once(engine: Engine) -> None:
    """The table takes an id once; the balance that is kept beside it must not count it twice."""
    shop = fresh("shop")
    postings = released(shop, 100)
    post(engine, *postings, *postings)
    key = SellerCurrency(shop, "s-1", "CNY")
    with engine.begin() as connection:
        assert lock_available(connection, [key]) == {key: 100}
    assert balance(engine, shop, "s-1")["available"] == 100


def test_one_id_with_two_contents_in_one_call_is_refused(engine: Engine) -> None:
    shop = fresh("shop")
    cause = new_id()
    with pytest.raises(ConflictingPosting):
        post(engine, *[a_posting(PostingKind.HELD, shop, amount, cause=cause) for amount in (100, 101)])
    assert balance(engine, shop, "s-1") == {}


def test_a_known_posting_with_other_content_rolls_everything_back(engine: Engine) -> None:
    shop = fresh("shop")
    cause = new_id()
    post(engine, a_posting(PostingKind.HELD, shop, 100, cause=cause))
    other = a_posting(PostingKind.HELD, shop, 101, cause=cause)
    with pytest.raises(ConflictingPosting):
        post(engine, *released(shop, 5), other)
    assert balance(engine, shop, "s-1") == {"held": 100, "received": -100}


def test_nothing_is_taken_from_a_balance_that_is_too_small(engine: Engine) -> None:
    shop = fresh("shop")
    post(engine, *released(shop, 100))
    with pytest.raises(IntegrityError, match="available_balances_not_negative_check"):
        post(engine, a_posting(PostingKind.PAYOUT_RESERVED, shop, 101))
    assert balance(engine, shop, "s-1")["available"] == 100


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"amount_minor": "0"}, "postings_amount_check"),
        ({"amount_minor": "-1"}, "postings_amount_check"),
        ({"amount_minor": "1000000000000001"}, "postings_amount_check"),
        ({"debit": "'held'", "credit": "'held'"}, "postings_two_accounts_check"),
        ({"currency": "'cny'"}, "postings_currency_check"),
        ({"seller_id": "''"}, "postings_seller_check"),
    ],
)
def test_the_database_itself_refuses_a_posting_that_double_entry_does_not_know(
    engine: Engine, columns: dict[str, str], constraint: str
) -> None:
    row = {
        "posting_id": "gen_random_uuid()",
        "kind": "'held'",
        "cause_id": "gen_random_uuid()",
        "shop_id": "'shop'",
        "seller_id": "'s-1'",
        "currency": "'CNY'",
        "debit": "'received'",
        "credit": "'held'",
        "amount_minor": "1",
        "booked_at": "clock_timestamp()",
    } | columns
    with pytest.raises(IntegrityError, match=constraint), engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO postings ({', '.join(row)}) VALUES ({', '.join(row.values())})")
        )


def test_many_postings_beside_each_other_leave_the_right_balances(engine: Engine) -> None:
    shop = fresh("shop")
    sellers = [f"s-{n}" for n in range(5)]

    def work(worker: int) -> None:
        order = sellers if worker % 2 else sellers[::-1]
        for amount in range(1, 11):
            post(engine, *[row for seller in order for row in released(shop, amount, seller=seller)])
            post(engine, *[a_posting(PostingKind.PAYOUT_RESERVED, shop, amount, seller=s) for s in order])

    side_by_side(*[lambda worker=worker: work(worker) for worker in range(6)])
    for seller in sellers:
        assert balance(engine, shop, seller) == {"in_payout": 330, "received": -330}


def test_a_locked_balance_does_not_change_until_the_transaction_ends(engine: Engine) -> None:
    shop = fresh("shop")
    post(engine, *released(shop, 100))
    key = SellerCurrency(shop, "s-1", "CNY")
    finished = threading.Event()

    def release_more() -> None:
        post(engine, *released(shop, 50))
        finished.set()

    with engine.begin() as connection:
        assert lock_available(connection, [key]) == {key: 100}
        other = threading.Thread(target=release_more)
        other.start()
        assert not finished.wait(0.2)
        assert lock_available(connection, [key]) == {key: 100}
    other.join()
    assert balance(engine, shop, "s-1")["available"] == 150


def test_sums_outgrow_64_bits(engine: Engine) -> None:
    shop = fresh("shop")
    post(engine, *[row for _ in range(9_500) for row in released(shop, MAX_AMOUNT_MINOR)])
    expected = 9_500 * MAX_AMOUNT_MINOR
    assert expected > 2**63
    assert read(engine, shop) == {"s-1": {"available": expected}}
    seal(engine)
    assert read(engine, shop) == {"s-1": {"available": expected}}


def test_a_seller_without_a_balance_has_nothing(engine: Engine) -> None:
    key = SellerCurrency(fresh("shop"), "nobody", "CNY")
    with engine.begin() as connection:
        assert lock_available(connection, [key]) == {key: 0}


# Sealed subtotals.


def seal(engine: Engine) -> int:
    with engine.begin() as connection:
        return seal_postings(connection)


def read(engine: Engine, shop: str) -> dict[str, dict[str, int]]:
    with engine.connect() as connection:
        return {
            row.seller_id: {
                name: value
                for name, value in (
                    ("held", row.held),
                    ("available", row.available),
                    ("in_payout", row.in_payout),
                    ("bank_cash", row.paid_out),
                )
                if value
            }
            for row in read_seller_balances(connection, shop)
        }


def scanned(engine: Engine, shop: str, seller: str) -> dict[str, int]:
    accounts = balance(engine, shop, seller)
    accounts.pop("received", None)
    return accounts


def test_balances_are_the_same_before_between_and_after_sealing(engine: Engine) -> None:
    shop = fresh("shop")
    for amount in (100, 20, 3):
        post(engine, *released(shop, amount), a_posting(PostingKind.HELD, shop, amount))
        expected = scanned(engine, shop, "s-1")
        assert read(engine, shop) == {"s-1": expected}
        seal(engine)
        assert read(engine, shop) == {"s-1": expected}
    assert read(engine, shop) == {"s-1": {"held": 123, "available": 123}}


def test_sealing_twice_folds_nothing_twice(engine: Engine) -> None:
    post(engine, *released(fresh("shop"), 100))
    assert seal(engine) > 0
    assert seal(engine) == 0


def test_a_posting_that_commits_after_a_later_one_was_sealed_is_not_lost(engine: Engine) -> None:
    """A transaction id is no commit order: the seal must stop below whatever is still open."""
    shop = fresh("shop")
    with engine.begin() as slow:
        now = slow.execute(text("SELECT clock_timestamp()")).scalar_one()
        record_postings(slow, released(shop, 100, seller="slow"), booked_at=now)
        post(engine, *released(shop, 50, seller="fast"))
        seal(engine)
        assert read(engine, shop) == {"fast": {"available": 50}}
    assert read(engine, shop) == {"fast": {"available": 50}, "slow": {"available": 100}}
    seal(engine)
    seal(engine)
    assert read(engine, shop) == {"fast": {"available": 50}, "slow": {"available": 100}}


def test_two_sealers_at_once_fold_each_posting_once(engine: Engine) -> None:
    shop = fresh("shop")
    post(engine, *[row for _ in range(50) for row in released(shop, 1)])
    side_by_side(*[lambda: seal(engine) for _ in range(4)])
    assert read(engine, shop) == {"s-1": {"available": 50}}


def test_sealing_beside_writers_never_shows_a_balance_that_was_not_there(engine: Engine) -> None:
    """Money moves only between held and available here, so their sum must never differ."""
    shop = fresh("shop")
    causes = [new_id() for _ in range(60)]
    post(engine, *[a_posting(PostingKind.HELD, shop, 10, cause=cause) for cause in causes])
    done = threading.Event()
    seen: list[int] = []

    def release(part: int) -> None:
        for cause in causes[part::3]:
            post(engine, a_posting(PostingKind.RELEASED, shop, 10, cause=cause))

    def seal_on() -> None:
        while not done.is_set():
            seal(engine)

    def read_on() -> None:
        while not done.is_set():
            [row] = read(engine, shop).values()
            seen.append(row.get("held", 0) + row.get("available", 0))

    def release_all() -> None:
        try:
            side_by_side(*[lambda part=part: release(part) for part in range(3)])
        finally:
            done.set()

    side_by_side(release_all, seal_on, read_on)
    assert set(seen) == {600}
    assert read(engine, shop) == {"s-1": scanned(engine, shop, "s-1")} == {"s-1": {"available": 600}}


def test_one_sellers_balances_are_read_alone(engine: Engine) -> None:
    shop = fresh("shop")
    post(engine, *released(shop, 1, seller="a"), *released(shop, 2, seller="b"))
    with engine.connect() as connection:
        [row] = read_seller_balances(connection, shop, "b")
    assert (row.seller_id, row.available) == ("b", 2)


def test_sealing_reads_only_what_came_since_the_last_seal(engine: Engine) -> None:
    """It runs every few seconds beside the orders; a look at the whole ledger would slow them as it grows."""
    shop = fresh("shop")
    post(engine, *[posting for _ in range(3_000) for posting in released(shop, 1)])
    seal(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE postings"))
    post(engine, *released(shop, 1))
    read = text("SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'postings'")
    with engine.begin() as connection:
        # What this session read before may not have been counted away yet.
        before = connection.execute(read).scalar_one()
        assert seal_postings(connection) > 0
        assert connection.execute(read).scalar_one() == before
