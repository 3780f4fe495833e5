"""Every field of every inbound event against wrong, missing, extra, boundary and hostile values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from schema_examples import SEALED, VALID_DATA, judge, valid_data, with_value

from schemas.event_data import EventData
from schemas.inbound import INBOUND, InvalidData, hash_of_raw

MAX = 10**15
INF = float("inf")  # written as 1e400, which is valid JSON
NOT_TEXT = (None, 7, 1.5, True, [], {}, ["x"])
CONTROLS = ("a\nb", "a\r\nb", "\x00", "a\x00b", "\x1b[2J", "\x7f", "a\ud800b")


@dataclass(frozen=True)
class Kind:
    accepted: tuple[object, ...]
    refused: tuple[object, ...]


def _parts(count: int) -> list[dict[str, Any]]:
    return [{"seller_id": f"s-{number}", "amount": 1} for number in range(count)]


ID = Kind(
    accepted=("x", "x" * 64, "a b~!", "../../etc", "'; DROP TABLE holds; --", " "),
    refused=(*NOT_TEXT, *CONTROLS, "", "x" * 65, "ü", "x" * 40_000, "\u202e"),
)
AMOUNT = Kind(
    accepted=(1, 2, MAX - 1, MAX),
    refused=(
        None,
        "1",
        "",
        1.0,
        0.1,
        1e15,
        INF,
        True,
        False,
        [],
        {},
        0,
        -1,
        -MAX,
        MAX + 1,
        2**63,
        2**64,
        10**400,
    ),
)
CURRENCY = Kind(
    accepted=("EUR", "JPY", "KWD", "CLF"),
    refused=(
        *NOT_TEXT,
        *CONTROLS,
        "",
        "EU",
        "EURO",
        "eur",
        "EUR ",
        "EUR\n",
        "ZZZ",
        "XAU",
        "XXX",
        "XTS",
        "978",
    ),
)
TIME = Kind(
    accepted=(
        "2026-11-23T08:00:00Z",
        "2026-11-23t08:00:00z",
        "2026-11-23T08:00:00.123456789+14:00",
        "2024-02-29T00:00:00-00:00",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
    ),
    refused=(
        *NOT_TEXT,
        *CONTROLS,
        1_795_420_800,
        INF,
        "1795420800",
        "",
        "now",
        "2026-11-23",
        "08:00:00Z",
        "2026-11-23T08:00:00",  # naive
        "2026-11-23T08:00Z",
        "2026-11-23T08Z",
        "2026-W48-1T08:00:00Z",
        "20261123T080000Z",
        "2026-11-23 08:00:00Z",
        "2026-11-23T08:00:00+0100",
        "2026-11-23T08:00:00+24:00",
        "2026-11-23T08:00:00+01:60",
        "2026-02-29T08:00:00Z",
        "2026-13-01T08:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T23:59:60Z",
        "2026-11-23T08:00:00.Z",
        "2026-11-23T08:00:00Z\n",
        " 2026-11-23T08:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",  # before year 1 in UTC
        "9999-12-31T23:59:59-01:00",  # after year 9999 in UTC
        "２０２６-11-23T08:00:00Z",  # noqa: RUF001 - digits that are not ASCII are the point
        "2026-11-23T08:00:00" + "." + "0" * 50_000 + "Z",
    ),
)
REFERENCE = Kind(
    accepted=("x", "x" * 35, "RF18 5390-0754/7034?:().,'+"),
    refused=(*NOT_TEXT, *CONTROLS, "", "x" * 36, "a_b", "a*b", "ü", "a\tb", "RF18\n"),
)
DAYS = Kind(
    accepted=(3, 4, 5, 6, 7),
    refused=(None, 0, 1, 2, 8, -3, 3.0, INF, 5.5, "5", True, [], {}, 2**64, 10**400),
)
EXPLANATION = Kind(
    accepted=("x", "x" * 200, "kam nie an: 包裹 📦", "\U0001f4e6" * 200),
    refused=(*NOT_TEXT, *CONTROLS, "", "x" * 201, "a\u2028b", "a\u2029b", "a\u0085b"),
)
SEALED_TEXT = Kind(
    accepted=(SEALED, "x"),
    refused=(*NOT_TEXT, *CONTROLS, "", "a b", "a=b", "a\n", "x" * 16_385, "{}"),
)
NO_PARTS = (None, 7, 1.5, True, "s-1", "", {}, {"0": {}}, [None], ["s-1"], [[]], [7], [{}])
PARTS = Kind(
    accepted=(_parts(1), _parts(64)),
    refused=(*NO_PARTS, [], _parts(65), _parts(1) * 2),
)
PARTS_OR_NONE = Kind(accepted=([], _parts(1), _parts(64)), refused=(*NO_PARTS, _parts(65), _parts(1) * 2))
SELLERS = Kind(
    accepted=(["s-1"], [f"s-{number}" for number in range(64)]),
    refused=(
        None,
        7,
        True,
        "s-1",
        {},
        [],
        [None],
        [7],
        [True],
        [""],
        ["s-1", "s-1"],
        [f"s-{number}" for number in range(65)],
    ),
)

# A field without a row here makes `test_the_table_has_a_row_for_every_field` fail.
TABLE: dict[str, dict[str, Kind]] = {
    "order.paid": {
        "order_id": ID,
        "buyer_id": ID,
        "amount": AMOUNT,
        "currency": CURRENCY,
        "paid_at": TIME,
        "bank_reference": REFERENCE,
        "splits": PARTS,
        "splits.0.seller_id": ID,
        "splits.0.amount": AMOUNT,
        "protection_days": DAYS,
    },
    "bank.credited": {
        "bank_reference": REFERENCE,
        "amount": AMOUNT,
        "currency": CURRENCY,
        "booked_at": TIME,
        "statement_line": ID,
    },
    "bank.debited": {
        "bank_reference": REFERENCE,
        "amount": AMOUNT,
        "currency": CURRENCY,
        "booked_at": TIME,
        "statement_line": ID,
        "reason": EXPLANATION,
    },
    "seller.enrolled": {"seller_id": ID, "destination_id": ID, "sealed": SEALED_TEXT},
    "seller.password_changed": {"seller_id": ID, "sealed": SEALED_TEXT},
    "withdrawal.requested": {
        "withdrawal_id": ID,
        "seller_id": ID,
        "amount": AMOUNT,
        "currency": CURRENCY,
        "destination_id": ID,
        "sealed": SEALED_TEXT,
    },
    "dispute.opened": {"dispute_id": ID, "order_id": ID, "reason": EXPLANATION, "seller_ids": SELLERS},
    "dispute.resolved": {
        "dispute_id": ID,
        "refunds": PARTS_OR_NONE,
        "refunds.0.seller_id": ID,
        "refunds.0.amount": AMOUNT,
    },
    "refund.requested": {
        "refund_id": ID,
        "order_id": ID,
        "refunds": PARTS,
        "refunds.0.seller_id": ID,
        "refunds.0.amount": AMOUNT,
    },
}
OPTIONAL = {("order.paid", "protection_days"), ("dispute.opened", "seller_ids")}
FIELDS = [(type_, path) for type_, rows in TABLE.items() for path in rows]


def _cases(which: str) -> list[Any]:
    return [
        pytest.param(type_, path, value, id=f"{type_}-{path}-{number}")
        for type_, rows in TABLE.items()
        for path, kind in rows.items()
        for number, value in enumerate(getattr(kind, which))
    ]


def _with_fitting_sum(type_: str, path: str, data: dict[str, Any]) -> dict[str, Any]:
    """Keep an order's splits adding up, so that only the field in question is tried."""
    if type_ == "order.paid" and path == "amount":
        return data | {"splits": [{"seller_id": "s-1", "amount": data["amount"]}]}
    if type_ == "order.paid" and path.startswith("splits"):
        splits = data["splits"][:1] if path == "splits.0.amount" else data["splits"]
        return data | {"splits": splits, "amount": sum(split["amount"] for split in splits)}
    return data


def _paths_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for part in _models_within(field.annotation):
            yield from _paths_of(part, f"{prefix}{name}.0.")


def _models_within(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_within(argument)


def test_the_table_has_a_row_for_every_field_of_every_inbound_event() -> None:
    assert {type_: set(rows) for type_, rows in TABLE.items()} == {
        type_: set(_paths_of(model)) for type_, model in INBOUND.items()
    }


@pytest.mark.parametrize("type_", INBOUND)
def test_the_example_of_each_type_is_valid(type_: str) -> None:
    assert isinstance(judge(type_, valid_data(type_)), INBOUND[type_])


@pytest.mark.parametrize(("type_", "path", "value"), _cases("accepted"))
def test_a_value_at_or_inside_its_bounds_is_accepted(type_: str, path: str, value: object) -> None:
    data = _with_fitting_sum(type_, path, with_value(valid_data(type_), path, value))
    judged = judge(type_, data)
    assert isinstance(judged, EventData), judged
    assert len(judged.content_hash()) == 32


@pytest.mark.parametrize(("type_", "path", "value"), _cases("refused"))
def test_a_wrong_or_hostile_value_is_refused_by_the_name_of_its_field(
    type_: str, path: str, value: object
) -> None:
    data = with_value(valid_data(type_), path, value)
    judged = judge(type_, data)
    assert isinstance(judged, InvalidData)
    assert judged.detail.startswith(path)
    assert judged.detail.isprintable()
    assert len(judged.detail) <= 300
    assert len(hash_of_raw(type_, data)) == 32


@pytest.mark.parametrize(("type_", "path"), FIELDS)
def test_a_missing_field_is_refused_by_name_unless_it_is_optional(type_: str, path: str) -> None:
    data = valid_data(type_)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = data
    for part in parents:
        target = target[part]
    del target[last]
    judged = judge(type_, data)
    if (type_, path) in OPTIONAL:
        assert isinstance(judged, EventData)
        assert getattr(judged, path) is None
    else:
        assert isinstance(judged, InvalidData)
        assert judged.detail == f"{path}: Field required"


@pytest.mark.parametrize("name", ["note", "Amount", "amount ", "", "__class__", "model_config", "TYPE"])
@pytest.mark.parametrize("type_", INBOUND)
def test_an_extra_field_is_refused(type_: str, name: str) -> None:
    judged = judge(type_, valid_data(type_) | {name: 1})
    assert isinstance(judged, InvalidData)
    assert "Extra inputs are not permitted" in judged.detail


@pytest.mark.parametrize(
    ("type_", "field"),
    [("order.paid", "splits"), ("dispute.resolved", "refunds"), ("refund.requested", "refunds")],
)
def test_an_extra_field_in_a_part_is_refused(type_: str, field: str) -> None:
    judged = judge(type_, with_value(valid_data(type_), f"{field}.0.note", "x"))
    assert isinstance(judged, InvalidData)
    assert judged.detail.startswith(f"{field}.0.note: ")


@pytest.mark.parametrize("name", ["x\nforged line", "\x1b[31m", "\ud800", "k" * 50_000, "\u202e", "ключ"])
def test_the_name_of_an_extra_field_cannot_forge_or_flood_the_detail(name: str) -> None:
    judged = judge("order.paid", valid_data("order.paid") | {name: 1})
    assert isinstance(judged, InvalidData)
    assert judged.detail.isascii()
    assert judged.detail.isprintable()
    assert len(judged.detail) <= 300
    assert judged.subject_id == "o-1"


@pytest.mark.parametrize("type_", INBOUND)
@pytest.mark.parametrize("data", [None, [], [1], "x", "", 7, 1.5, True], ids=repr)
def test_data_that_is_no_object_is_refused_without_a_subject(type_: str, data: object) -> None:
    judged = judge(type_, data)
    assert isinstance(judged, InvalidData)
    assert judged.subject_id is None


@pytest.mark.parametrize("amounts", [[1, 1], [6_999, 5_000], [7_001, 5_000], [MAX, MAX], [12_000, 1]])
def test_splits_that_do_not_add_up_are_refused(amounts: list[int]) -> None:
    splits = [{"seller_id": f"s-{number}", "amount": amount} for number, amount in enumerate(amounts)]
    judged = judge("order.paid", valid_data("order.paid") | {"splits": splits})
    assert isinstance(judged, InvalidData)
    assert judged.detail.startswith("splits: they add up to")


def test_a_seller_may_not_stand_twice_even_when_the_sum_is_right() -> None:
    splits = [{"seller_id": "s-1", "amount": 6_000}] * 2
    judged = judge("order.paid", valid_data("order.paid") | {"splits": splits})
    assert isinstance(judged, InvalidData)
    assert judged.detail == "splits: each seller may stand only once"


@pytest.mark.parametrize("type_", INBOUND)
def test_the_subject_is_read_from_data_that_is_otherwise_broken(type_: str) -> None:
    model = INBOUND[type_]
    judged = judge(type_, {model.SUBJECT: "id-7", "junk": {"deep": [1]}})
    assert isinstance(judged, InvalidData)
    assert judged.subject_id == "id-7"


@pytest.mark.parametrize(
    "subject", [None, 7, True, [], {}, "", "x" * 65, "a\nb", "\ud800", "ü", "x\n"], ids=repr
)
def test_a_subject_that_is_no_id_is_not_repeated(subject: object) -> None:
    judged = judge("order.paid", valid_data("order.paid") | {"order_id": subject})
    assert isinstance(judged, InvalidData)
    assert judged.subject_id is None


@pytest.mark.parametrize("type_", [type_ for type_ in INBOUND if "sealed" in VALID_DATA[type_]])
def test_what_was_sealed_wrongly_is_never_echoed(type_: str) -> None:
    """A platform that forgets to seal sends the password in clear; it must not come back in a reply."""
    for value in ("hunter2 hunter2", ["hunter2"], {"password": "hunter2"}, "hunter2" * 4_000):
        judged = judge(type_, valid_data(type_) | {"sealed": value})
        assert isinstance(judged, InvalidData)
        assert "hunter2" not in judged.detail
        assert "hunter2" not in repr(judged)


@pytest.mark.parametrize("type_", INBOUND)
def test_validated_data_cannot_be_changed(type_: str) -> None:
    judged = judge(type_, valid_data(type_))
    name = next(iter(type(judged).model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(judged, name, "other")


def test_every_type_says_who_may_send_it_and_what_refuses_it() -> None:
    banks = {type_ for type_, model in INBOUND.items() if model.SCOPE is None}
    assert banks == {"bank.credited", "bank.debited"}
    for type_, model in INBOUND.items():
        scope = {"order": "orders", "dispute": "orders", "refund": "orders"}.get(
            type_.split(".")[0], "sellers"
        )
        assert (None if type_ in banks else scope) == model.SCOPE
        assert (None if type_ in banks else type_.split(".")[0] + ".rejected") == model.REJECTED
        assert model.SUBJECT in model.model_fields
