"""Ids that a replay makes again, and postings that are balanced by construction."""

import copy
import time
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ledger.accounts import SELLER_KINDS
from ledger.errors import InvalidPosting
from ledger.ids import derive_id, derive_ids, key_id, key_ids, new_id, new_ids
from ledger.postings import ACCOUNTS_OF, MAX_AMOUNT_MINOR, Posting, PostingKind

parents = st.uuids(version=4)
kinds = st.text(min_size=1, max_size=20)


@given(kinds, parents)
def test_a_derived_id_is_the_same_whenever_it_is_derived(kind: str, parent: UUID) -> None:
    assert derive_id(kind, parent) == derive_id(kind, parent)


@given(kinds, kinds, parents, parents)
def test_another_kind_or_parent_is_another_id(kind: str, other: str, parent: UUID, stranger: UUID) -> None:
    if kind != other:
        assert derive_id(kind, parent) != derive_id(other, parent)
    if parent != stranger:
        assert derive_id(kind, parent) != derive_id(kind, stranger)


@given(kinds, parents)
def test_a_derived_id_is_a_uuid_v8_beside_its_parent(kind: str, parent: UUID) -> None:
    child = derive_id(kind, parent)
    assert (child.version, child.variant) == (8, "specified in RFC 4122")
    assert child.bytes[:6] == parent.bytes[:6], "the time prefix keeps the rows of one payment together"


def test_new_ids_are_uuid_v7_of_this_moment_and_never_repeat() -> None:
    before = time.time_ns() // 1_000_000
    made = [new_id() for _ in range(1_000)]
    after = time.time_ns() // 1_000_000
    assert {id_.version for id_ in made} == {7}
    assert all(before <= int.from_bytes(id_.bytes[:6], "big") <= after for id_ in made)
    assert len(set(made)) == len(made)


def test_an_id_is_a_uuid_like_any_other() -> None:
    for made in (new_id(), key_id("order", "a"), derive_id("held", UUID(int=1))):
        usual = UUID(str(made))
        assert (made, hash(made), repr(made), made.is_safe) == (
            usual,
            hash(usual),
            repr(usual),
            usual.is_safe,
        )
        assert copy.deepcopy(made) == usual


def test_a_batch_of_new_ids_has_as_many_as_were_asked_for() -> None:
    made = new_ids(1_000)
    assert {id_.version for id_ in made} == {7}
    assert len(set(made)) == 1_000


@given(st.lists(st.tuples(kinds, parents)), st.lists(st.tuples(kinds, kinds)))
def test_what_is_derived_for_a_batch_is_what_each_would_get_alone(
    derived: list[tuple[str, UUID]], keys: list[tuple[str, str]]
) -> None:
    assert derive_ids([kind for kind, _ in derived], [parent for _, parent in derived]) == [
        derive_id(kind, parent) for kind, parent in derived
    ]
    assert key_ids("order_answer", keys) == [key_id("order_answer", *parts) for parts in keys]


@given(kinds, parents, st.tuples(kinds, kinds))
def test_ids_are_those_that_lie_in_databases_already(kind: str, parent: UUID, parts: tuple[str, str]) -> None:
    """By UUID's own constructor, from the rule as it is written down."""
    hashed = sha256(kind.encode() + b"|" + parent.bytes).digest()
    assert derive_id(kind, parent) == UUID(int=_as_version_8(parent.bytes[:6] + hashed[:10]))
    assert key_id(kind, *parts) == UUID(
        int=_as_version_8(sha256("\x1f".join((kind, *parts)).encode()).digest()[:16])
    )


def _as_version_8(raw: bytes) -> int:
    """RFC 9562: the version in bits 48 to 51, the variant in bits 64 and 65."""
    octets = bytearray(raw)
    octets[6] = octets[6] & 0x0F | 0x80
    octets[8] = octets[8] & 0x3F | 0x80
    return int.from_bytes(octets, "big")


def test_no_two_keys_collide_by_concatenation() -> None:
    assert key_id("order", "ab", "c") != key_id("order", "a", "bc")
    assert key_id("order", "a") != key_id("order", "a", "")


@pytest.mark.parametrize("kind", PostingKind)
def test_every_kind_of_posting_has_two_different_accounts(kind: PostingKind) -> None:
    debit, credit = ACCOUNTS_OF[kind]
    assert debit is not credit


def a_posting(kind: PostingKind = PostingKind.HELD, **changes: Any) -> Posting:
    needs_seller = SELLER_KINDS & set(ACCOUNTS_OF[kind])
    values: dict[str, Any] = {
        "cause_id": UUID(int=1),
        "shop_id": "acme",
        "seller_id": "s-1" if needs_seller else "",
        "currency": "CNY",
        "amount_minor": 1,
    }
    return Posting(kind, **(values | changes))


@pytest.mark.parametrize("kind", PostingKind)
def test_a_posting_id_follows_from_its_kind_and_cause_alone(kind: PostingKind) -> None:
    assert a_posting(kind).posting_id == a_posting(kind, amount_minor=2).posting_id
    assert a_posting(kind).posting_id != a_posting(kind, cause_id=UUID(int=2)).posting_id


@pytest.mark.parametrize("amount", [0, -1, MAX_AMOUNT_MINOR + 1, True, 1.0, "1", None])
def test_no_other_amount_than_an_integer_in_range_is_posted(amount: object) -> None:
    with pytest.raises(InvalidPosting):
        a_posting(amount_minor=amount)


def test_a_changed_copy_is_checked_like_any_posting() -> None:
    posting = a_posting()
    assert replace(posting, amount_minor=2) == a_posting(amount_minor=2)
    assert copy.deepcopy(posting) == posting
    with pytest.raises(InvalidPosting):
        replace(posting, amount_minor=-1)
    with pytest.raises(InvalidPosting):
        replace(posting, amount_minor=True)


@pytest.mark.parametrize("amount", [1, MAX_AMOUNT_MINOR])
def test_both_ends_of_the_range_are_posted(amount: int) -> None:
    assert a_posting(amount_minor=amount).amount_minor == amount


@pytest.mark.parametrize("kind", PostingKind)
def test_money_of_a_seller_names_the_seller(kind: PostingKind) -> None:
    if SELLER_KINDS & set(ACCOUNTS_OF[kind]):
        with pytest.raises(InvalidPosting, match="needs a seller"):
            a_posting(kind, seller_id="")
    else:
        with pytest.raises(InvalidPosting, match="has no seller"):
            a_posting(kind, seller_id="s-1")
