"""What the bank refuses, and that its refusal names the field."""

import json
from http import HTTPStatus
from typing import Any

import pytest

from infra.local.bank.wire import BEHAVIOUR, CREDITS, DEBITS, TRANSFER, Refused, read_request

TRANSFER_JSON = {
    "end_to_end_id": "e-1",
    "amount": 1,
    "currency": "EUR",
    "destination_id": "d-1",
    "destination": {"type": "iban", "iban": "DE89370400440532013000", "holder_name": "S"},
}
CREDIT_JSON = {"bank_reference": "RF-1", "amount": 1, "currency": "EUR"}


def refusal(kind: Any, document: object) -> dict[str, str]:
    with pytest.raises(Refused) as refused:
        read_request(kind, document if isinstance(document, bytes) else json.dumps(document).encode())
    assert refused.value.status == HTTPStatus.BAD_REQUEST
    return refused.value.body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amount", 0),
        ("amount", -1),
        ("amount", 1.0),
        ("amount", "1"),
        ("amount", True),
        ("amount", 10**15 + 1),
        ("currency", "XXX"),
        ("currency", "eur"),
        ("end_to_end_id", ""),
        ("end_to_end_id", "x" * 36),
        ("destination_id", "\n"),
        ("extra", 1),
    ],
)
def test_a_wrong_field_of_a_transfer_is_named(field: str, value: object) -> None:
    assert refusal(TRANSFER, {**TRANSFER_JSON, field: value})["field"] == field


def test_a_wrong_iban_is_named_and_not_repeated() -> None:
    destination = {"type": "iban", "iban": "DE00370400440532013000", "holder_name": "S"}
    body = refusal(TRANSFER, {**TRANSFER_JSON, "destination": destination})
    assert body["field"].endswith("iban")
    assert "370400440532013000" not in json.dumps(body)


@pytest.mark.parametrize("missing", sorted(TRANSFER_JSON))
def test_a_missing_field_of_a_transfer_is_named(missing: str) -> None:
    assert refusal(TRANSFER, {k: v for k, v in TRANSFER_JSON.items() if k != missing})["field"] == missing


def test_a_credit_in_a_list_is_named_by_its_place() -> None:
    assert refusal(CREDITS, [CREDIT_JSON, {**CREDIT_JSON, "amount": 0}])["field"] == "1.amount"
    assert refusal(DEBITS, [{**CREDIT_JSON, "reason": "\n"}])["field"] == "0.reason"


@pytest.mark.parametrize("document", [[], {}, [CREDIT_JSON] * 10_001, b"", b"[", b"\xff", b"null"])
def test_what_is_no_list_of_credits_is_refused(document: object) -> None:
    assert refusal(CREDITS, document)["field"] == "body"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"behaviour": "explode"}, "behaviour"),
        ({"behaviour": "late", "delay_seconds": -1}, "delay_seconds"),
        ({"behaviour": "late", "delay_seconds": "soon"}, "delay_seconds"),
        ({"behaviour": "late", "destination": ""}, "destination"),
        ({}, "behaviour"),
    ],
)
def test_a_wrong_behaviour_is_named(change: dict[str, object], field: str) -> None:
    assert refusal(BEHAVIOUR, change)["field"] == field


def test_a_delay_may_be_a_whole_number() -> None:
    assert read_request(BEHAVIOUR, b'{"behaviour": "late", "delay_seconds": 3}').delay_seconds == 3.0
