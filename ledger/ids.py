"""
Identifiers that a replay makes again.

A parent (payment, credit) gets a time-ordered UUIDv7 once; everything below it has an id that is computed
from the parent, so handling a message twice names the same rows twice. What the bank is told of (payouts,
refunds) has an id that is computed from its business key: not even a database that was restored from before
it makes another one.
"""

import secrets
import time
from collections import deque
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import repeat
from uuid import UUID, SafeUUID

_TIME_PREFIX_BYTES = 6
# RFC 9562, section 4: four bits of version and two of variant; the others are ours.
_VERSION_SHIFT = 76
_VARIANT = 0b10 << 62
_FREE_BITS = ((1 << 128) - 1) & ~(0xF << _VERSION_SHIFT) & ~(0b11 << 62)
_VERSION_7, _VERSION_8 = (version << _VERSION_SHIFT | _VARIANT for version in (7, 8))
_RANDOM_BYTES = 10
_ID_BYTES = 16
_FROM_BYTES = int.from_bytes
# The slots' own setters: past `UUID.__setattr__`, which refuses, and quicker than `object.__setattr__`.
_SET_NUMBER, _SET_SAFETY = (UUID.__dict__[slot].__set__ for slot in ("int", "is_safe"))
_NEW_OBJECT, _UNKNOWN = object.__new__, SafeUUID.unknown


def new_id() -> UUID:
    """Make a UUIDv7 (RFC 9562, section 5.7): neighbours in time are neighbours in an index."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[UUID]:
    """Make as many of them as a batch needs, with one reading of the clock and of the system's randomness."""
    prefix = (time.time_ns() // 1_000_000).to_bytes(_TIME_PREFIX_BYTES, "big")
    noise = secrets.token_bytes(_RANDOM_BYTES * count)
    return _stamped(
        [
            _FROM_BYTES(prefix + noise[start : start + _RANDOM_BYTES], "big")
            for start in range(0, len(noise), _RANDOM_BYTES)
        ],
        _VERSION_7,
    )


def derive_id(kind: str, parent: UUID) -> UUID:
    """
    Compute the id of `kind` that belongs to `parent`.

    A UUIDv8 (RFC 9562, section 5.8): the parent's 48-bit time prefix, so that the rows of one payment
    lie close together in every index, and 74 bits of SHA-256 over kind and parent.
    """
    return derive_ids((kind,), (parent,))[0]


def derive_ids(kinds: Iterable[str], parents: Iterable[UUID]) -> list[UUID]:
    """Compute `derive_id` of as many as a batch needs."""
    return _stamped(
        [
            _FROM_BYTES(
                raw[:_TIME_PREFIX_BYTES] + sha256(kind.encode() + b"|" + raw).digest()[:_RANDOM_BYTES], "big"
            )
            for kind, parent in zip(kinds, parents, strict=True)
            for raw in (parent.int.to_bytes(_ID_BYTES, "big"),)
        ],
        _VERSION_8,
    )


def key_id(kind: str, *parts: str) -> UUID:
    """
    Compute an id from a business key such as `("order", shop_id, order_id)`.

    The parts are joined by a character that no id may contain, so no two keys collide by concatenation.
    """
    return key_ids(kind, (parts,))[0]


def key_ids(kind: str, keys: Iterable[tuple[str, ...]]) -> list[UUID]:
    """Compute `key_id` of as many business keys as a batch needs."""
    return _stamped(
        [
            _FROM_BYTES(sha256("\x1f".join((kind, *parts)).encode()).digest()[:_ID_BYTES], "big")
            for parts in keys
        ],
        _VERSION_8,
    )


def order_answer_ids(orders: Iterable[tuple[str, str]]) -> list[UUID]:
    """Compute the id of the one event that answers each order, held or rejected; of `(shop_id, order_id)`."""
    return key_ids("order_answer", orders)


def order_answer_id(shop_id: str, order_id: str) -> UUID:
    """Compute `order_answer_ids` of one order."""
    return order_answer_ids([(shop_id, order_id)])[0]


def each_once(ids: Iterable[UUID]) -> list[UUID]:
    """Return ids in the order in which rows are locked, each once."""
    # By number: what UUID itself does to hash and to compare is a call in Python each time.
    by_number = {id_.int: id_ for id_ in ids}
    return [by_number[number] for number in sorted(by_number)]


def refund_part_id(refund_key: UUID, hold_id: UUID, attempt: int = 0) -> UUID:
    """
    Compute the cause of a refund's postings: one part, of one hold.

    It is reserved under the first attempt's. A further attempt, after the bank refused it or it came
    back, settles under a cause of its own, so that its postings are new ones.
    """
    return derive_id(f"refund_part:{hold_id}{attempt_suffix(attempt)}", refund_key)


def refund_attempt_id(refund_key: UUID, attempt: int) -> str:
    """Compute what the bank calls an attempt at a refund; 32 characters, ISO 20022 allows 35."""
    return (derive_id(f"refund_attempt{attempt_suffix(attempt)}", refund_key) if attempt else refund_key).hex


def attempt_suffix(attempt: int) -> str:
    """Return what tells a further attempt's ids from the first one's."""
    return f":{attempt}" if attempt else ""


def _stamped(numbers: Sequence[int], stamp: int) -> list[UUID]:
    """
    Make ids of random or hashed numbers: version and variant written into each.

    What UUID's own constructor does at its end, without its looking through six ways to be called and, as
    an order makes half a dozen of these, without a step of Python for each. A test compares the two.
    """
    made = list(map(_NEW_OBJECT, repeat(UUID, len(numbers))))
    _exhaust(map(_SET_NUMBER, made, [number & _FREE_BITS | stamp for number in numbers]))
    _exhaust(map(_SET_SAFETY, made, repeat(_UNKNOWN)))
    return made


# Runs an iterator for what it does, in C.
_exhaust = deque[None](maxlen=0).extend
