"""What a check is, and the SQL that several of them are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# How long something may be on its way before it counts as resting: far beyond what the sweep needs to find
# what was lost, and time enough for a system that was down to catch up.
BOUND: Final = "interval '15 minutes'"
# The bank is asked again after an hour at most, and the sweep asks after two.
BANK_BOUND: Final = "interval '3 hours'"
# A step's time is read when it begins. It may then wait for a lock, and act on what was committed
# meanwhile under a later time; locks and statements have time-outs, so not for longer than this.
OVERLAP: Final = "interval '1 minute'"


@dataclass(frozen=True, slots=True)
class Check:
    """
    One invariant: a name, the promise in words, and the SQL that proves it from the rows.

    Checks of one `invariant` prove parts of it. The statement returns one row for every thing that it judges:
    `broken`, and `example`, which names the thing. NULL counts as broken: what can't be judged is not proved.
    """

    invariant: int
    name: str
    promise: str
    statement: str


def listed(values: Sequence[str]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


def derived_id(kind: str, parent: str) -> str:
    """SQL for `ledger.ids.derive_id`; `kind` is an SQL expression too."""
    return _stamped(
        f"substring(uuid_send({parent}) FOR 6)"
        f" || substring(sha256(convert_to({kind} || '|', 'UTF8') || uuid_send({parent})) FOR 10)"
    )


def attempt_suffix(table: str) -> str:
    """SQL for `ledger.ids.attempt_suffix`; a colon would name a parameter."""
    return f"CASE {table}.attempt WHEN 0 THEN '' ELSE chr(58) || {table}.attempt END"


def key_id(kind: str, *parts: str) -> str:
    """SQL for `ledger.ids.key_id`; parts are SQL expressions."""
    joined = " || chr(31) || ".join((f"'{kind}'", *parts))
    return _stamped(f"substring(sha256(convert_to({joined}, 'UTF8')) FOR 16)")


def _stamped(raw: str) -> str:
    """SQL for the version and variant bits of a UUIDv8, as in `ledger.ids`."""
    versioned = f"set_byte({raw}, 6, (get_byte({raw}, 6) & 15) | 128)"
    return f"CAST(encode(set_byte({versioned}, 8, (get_byte({raw}, 8) & 63) | 128), 'hex') AS uuid)"
