"""'The same content' means the same values, whatever way they were spelled."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from schema_examples import SEALED, VALID_DATA, judge, valid_data, with_value

from schemas.event_data import EventData
from schemas.inbound import INBOUND, hash_of_raw

# The hashes of the examples, kept for ever: a stored hash must mean the same content years later. A change
# here turns every honest repeat of an older message into a conflicting duplicate.
PINNED: dict[str, str] = {
    "order.paid": "c14e5de02ce7c66dc066a22466e46dbd4f84349884513b1bc0172ef3cafbe805",
    "bank.credited": "5d5fab37b232ba9416aad11c81fcae9dd12f8095932bdcfef3beedb1abc43988",
    "bank.debited": "954fdd6dd447142493c23b79181fd5b4a18b207a76ce07d02f5664185c7ab333",
    "seller.enrolled": "9928bc62fbc0168804999e1f3fc3d26e467ccf1b335f835e72caa7e106a4d859",
    "seller.password_changed": "0ba04594c73d1d4852b0e865dec5e8d59277b39def2343bac70beaec7f80d334",
    "withdrawal.requested": "a1e3f1e6f67d630f31de9d587a3fb7617928358da58ab0125a69b0f224f181be",
    "dispute.opened": "735b174dd5ea21881a2cafa4e33d7b00d1e4ddc92ac309c54164216910606d88",
    "dispute.resolved": "d9a6e8ddb7c3e47f2b7ec1601bc8e82fca099a79e7258988009d02853b816923",
    "refund.requested": "cab376d9b05782b8febaa192049014dbd9a169aa03dab1a9a55294f85f620477",
}


def hash_of(type_: str, data: dict[str, Any]) -> bytes:
    judged = judge(type_, data)
    assert isinstance(judged, EventData), judged
    return judged.content_hash()


def _shuffled(value: Any, draw: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shuffled(value[name], draw) for name in draw(st.permutations(sorted(value)))}
    return [_shuffled(item, draw) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("type_", INBOUND)
def test_the_hash_of_each_example_is_what_it_always_was(type_: str) -> None:
    assert hash_of(type_, VALID_DATA[type_]).hex() == PINNED[type_]


@given(st.data())
def test_the_order_of_fields_makes_no_difference(drawn: Any) -> None:
    type_ = drawn.draw(st.sampled_from(sorted(INBOUND)))
    assert hash_of(type_, _shuffled(VALID_DATA[type_], drawn.draw)) == hash_of(type_, VALID_DATA[type_])


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - the offset is drawn apart
    st.integers(-23 * 60, 23 * 60),
    st.integers(-23 * 60, 23 * 60),
)
def test_the_offset_in_which_a_time_is_written_makes_no_difference(
    moment: datetime, one_minutes: int, other_minutes: int
) -> None:
    instant = moment.replace(tzinfo=UTC)
    written = [
        instant.astimezone(timezone(timedelta(minutes=minutes))).isoformat()
        for minutes in (0, one_minutes, other_minutes)
    ]
    assert len({hash_of("order.paid", valid_data("order.paid") | {"paid_at": text}) for text in written}) == 1


def test_spellings_of_one_instant_are_one_content() -> None:
    spellings = ("2026-11-23T08:00:00Z", "2026-11-23t08:00:00z", "2026-11-23T08:00:00.000+00:00")
    data = valid_data("order.paid")
    assert len({hash_of("order.paid", data | {"paid_at": text}) for text in spellings}) == 1


@given(st.data())
def test_any_other_value_is_other_content(drawn: Any) -> None:
    """The splits follow the amount, so what differs is never less than what was drawn."""
    ids = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64)
    one, other = (
        {
            "order_id": drawn.draw(ids),
            "buyer_id": drawn.draw(ids),
            "currency": drawn.draw(st.sampled_from(["EUR", "CNY", "JPY"])),
            "paid_at": drawn.draw(st.sampled_from(["2026-11-23T08:00:00Z", "2026-11-23T08:00:00.000001Z"])),
            "bank_reference": drawn.draw(st.sampled_from(["RF1", "rf1", "RF1 "])),
            **drawn.draw(st.sampled_from([{}, {"protection_days": 3}, {"protection_days": 7}])),
            **_an_amount(drawn.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))),
        }
        for _ in range(2)
    )
    assert (hash_of("order.paid", one) == hash_of("order.paid", other)) == (one == other)


def _an_amount(parts: list[int]) -> dict[str, Any]:
    splits = [{"seller_id": f"s-{number}", "amount": part} for number, part in enumerate(parts)]
    return {"amount": sum(parts), "splits": splits}


@pytest.mark.parametrize(
    ("type_", "path", "value"),
    [
        (type_, name, other)
        for type_, data in VALID_DATA.items()
        for name in data
        for other in (
            "other",
            2,
            "JPY",
            "2026-11-23T08:00:01Z",
            7,
            ["s-1"],
            [{"seller_id": "s-1", "amount": 2}],
        )
    ],
)
def test_each_single_field_counts_except_sealed(type_: str, path: str, value: object) -> None:
    data = with_value(VALID_DATA[type_], path, value)
    judged = judge(type_, data)
    if not isinstance(judged, EventData):
        return  # not a value of this field
    same = judged.content_hash() == hash_of(type_, VALID_DATA[type_])
    assert same == (path == "sealed" or data == VALID_DATA[type_])


def test_the_same_request_sealed_anew_is_the_same_content() -> None:
    data = valid_data("withdrawal.requested")
    assert hash_of("withdrawal.requested", data | {"sealed": "x" + SEALED}) == hash_of(
        "withdrawal.requested", data
    )


def test_the_order_of_an_array_is_content() -> None:
    data = valid_data("order.paid")
    turned = data | {"splits": data["splits"][::-1]}
    assert hash_of("order.paid", turned) != hash_of("order.paid", data)


def test_a_default_that_is_written_out_is_other_content_than_one_left_out() -> None:
    """Which days the shop's policy gives may change; what the message said does not."""
    data = valid_data("order.paid")
    del data["protection_days"]
    assert hash_of("order.paid", data) != hash_of("order.paid", data | {"protection_days": 7})


def test_the_same_fields_under_another_type_are_other_content() -> None:
    data = valid_data("bank.debited")
    without_reason = {name: value for name, value in data.items() if name != "reason"}
    assert hash_of("bank.credited", without_reason) != hash_of("bank.debited", data)
    assert hash_of_raw("order.paid", {}) != hash_of_raw("bank.credited", {})


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=4))
def test_broken_data_is_known_again_whatever_the_order_of_its_fields(data: dict[str, Any]) -> None:
    turned = dict(reversed(data.items()))
    assert hash_of_raw("order.paid", data) == hash_of_raw("order.paid", turned)
    assume(data)
    assert hash_of_raw("order.paid", data) != hash_of_raw("order.paid", json.dumps(data))
