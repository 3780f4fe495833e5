"""What our own queues carry, and what shops read."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.commands import (
    COMMANDS,
    MAX_IDS,
    CheckRefund,
    CheckTransfer,
    CollectReturns,
    Command,
    HoldFunds,
    MalformedCommand,
    decode_command,
)
from schemas.outgoing import (
    OUTGOING,
    HeldPart,
    HoldReleased,
    OrderHeld,
    OrderRejected,
    UsualHeldPart,
    UsualHoldReleased,
    UsualOrderHeld,
    WithdrawalRejected,
    write_usual,
)
from schemas.reasons import Reason

ID = "0193587a-0000-7000-8000-000000000001"

# A field that names rows: by their id, or a refund by its key, since its id is the shop's own.
_OF_ROWS = ("_ids", "_keys")


def _a_command(kind: type[Command]) -> Command:
    fields: dict[str, Any] = {name: (UUID(ID),) for name in kind.model_fields if name.endswith(_OF_ROWS)}
    return kind(**fields)


@pytest.mark.parametrize("kind", COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_read_as_it_was_written(kind: type[Command]) -> None:
    command = _a_command(kind)
    assert decode_command(kind, command.model_dump_json().encode()) == command


@pytest.mark.parametrize("kind", [kind for kind in COMMANDS.values() if kind is not CollectReturns])
def test_a_command_carries_one_to_512_ids(kind: type[Command]) -> None:
    (name,) = [name for name in kind.model_fields if name.endswith(_OF_ROWS)]
    most = json.dumps({name: [str(uuid4()) for _ in range(MAX_IDS)]}).encode()
    assert len(getattr(decode_command(kind, most), name)) == MAX_IDS
    for count in (0, MAX_IDS + 1):
        with pytest.raises(MalformedCommand, match=name):
            decode_command(kind, json.dumps({name: [ID] * count}).encode())


HOSTILE_BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff",
    b"\x00",
    b"[" * 100_000,
    b'{"payment_ids": null}',
    b'{"payment_ids": "%s"}' % ID.encode(),
    b'{"payment_ids": {"0": "%s"}}' % ID.encode(),
    b'{"payment_ids": [7]}',
    b'{"payment_ids": ["x"]}',
    b'{"payment_ids": ["%s\\n"]}' % ID.encode(),
    b'{"payment_ids": ["%s"], "options": {"pipe_target": null}}' % ID.encode(),
    b'{"payment_ids": ["%s"], "a\\u000ab": 1}' % ID.encode(),
    b'{"queue_name": "escrow.hold", "actor_name": ["hold_funds"], "args": [], "options": null}',
    b'{"%s": 1}' % (b"k" * 100_000),
]


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=lambda body: ascii(body)[:40])
def test_anything_else_on_our_own_queues_is_a_malformed_command(body: bytes) -> None:
    with pytest.raises(MalformedCommand) as caught:
        decode_command(HoldFunds, body)
    assert str(caught.value).startswith("hold_funds: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_malformed_command_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(MalformedCommand):
        decode_command(HoldFunds, body)


@pytest.mark.parametrize("tries", ["null", '"1"', "1.0", "true", "-1", "1000001", "9" * 5_000, "[]"])
def test_the_count_of_tries_is_a_small_whole_number(tries: str) -> None:
    with pytest.raises(MalformedCommand):
        decode_command(CheckTransfer, f'{{"payout_ids": ["{ID}"], "tries": {tries}}}'.encode())


def test_the_count_of_tries_starts_at_none() -> None:
    assert decode_command(CheckTransfer, f'{{"payout_ids": ["{ID}"]}}'.encode()).tries == 0


def test_a_command_carries_ids_of_rows_and_nothing_that_could_decide() -> None:
    """Who forges a command can do nothing that the rows do not already allow."""
    for kind in COMMANDS.values():
        for name in kind.model_fields:
            assert name.endswith(_OF_ROWS) or (kind, name) in {
                (CheckTransfer, "tries"),
                (CheckRefund, "tries"),
            }


def test_each_command_and_each_event_stands_under_its_own_name() -> None:
    assert [kind.NAME for kind in COMMANDS.values()] == list(COMMANDS)
    assert [model.TYPE for model in OUTGOING.values()] == list(OUTGOING)


def test_times_leave_as_rfc_3339_in_utc_and_absent_fields_not_at_all() -> None:
    held = OrderHeld(
        order_id="o-1",
        event_id="e-1",
        protection_days=3,
        release_at=datetime(2026, 11, 26, 8, tzinfo=UTC),
        funded=False,
        holds=(),
    )
    assert json.loads(held.model_dump_json())["release_at"] == "2026-11-26T08:00:00Z"
    rejected = WithdrawalRejected(withdrawal_id="w-1", event_id="e-1", reason=Reason.INVALID_DATA, detail="x")
    assert json.loads(rejected.model_dump_json(exclude_none=True)) == {
        "withdrawal_id": "w-1",
        "event_id": "e-1",
        "reason": "invalid_data",
        "detail": "x",
    }


def test_an_event_of_ours_with_a_field_that_nobody_declared_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="note"):
        OrderRejected.model_validate(
            {"order_id": "o", "event_id": "e", "reason": "locked", "detail": "", "note": "x"}
        )


_IDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64)


@given(
    order_id=_IDS,
    event_id=_IDS,
    protection_days=st.integers(3, 7),
    release_at=st.datetimes(timezones=st.just(UTC)),
    funded=st.booleans(),
    parts=st.lists(
        st.tuples(st.uuids(), _IDS, st.integers(1, 10**15), st.sampled_from(["EUR", "JPY"])),
        min_size=1,
        max_size=3,
    ),
)
def test_an_order_held_is_written_as_its_model_dumps_it(  # noqa: PLR0917 - what it is made of
    order_id: str,
    event_id: str,
    protection_days: int,
    release_at: datetime,
    funded: bool,  # noqa: FBT001 - drawn
    parts: list[tuple[UUID, str, int, str]],
) -> None:
    written = write_usual(
        UsualOrderHeld(
            order_id, event_id, protection_days, release_at, funded, [UsualHeldPart(*part) for part in parts]
        )
    )
    model = OrderHeld(
        order_id=order_id,
        event_id=event_id,
        protection_days=protection_days,
        release_at=release_at,
        funded=funded,
        holds=tuple(
            HeldPart(hold_id=str(hold_id), seller_id=seller, amount=amount, currency=currency)
            for hold_id, seller, amount, currency in parts
        ),
    )
    assert written == model.model_dump_json(exclude_none=True)


@given(
    hold_id=st.uuids(),
    order_id=_IDS,
    seller_id=_IDS,
    amount=st.integers(0, 10**15),
    fee=st.integers(0, 10**15),
    released_at=st.datetimes(timezones=st.just(UTC)),
)
def test_a_hold_released_is_written_as_its_model_dumps_it(hold_id: UUID, **values: Any) -> None:
    model = HoldReleased(hold_id=str(hold_id), currency="EUR", **values)
    written = write_usual(UsualHoldReleased(hold_id=hold_id, currency="EUR", **values))
    assert written == model.model_dump_json(exclude_none=True)
