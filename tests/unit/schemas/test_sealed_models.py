"""What stands inside `sealed`: strict like the outside, and never shown."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from schemas.seller_enrolled import SealedEnrolment
from schemas.seller_password_changed import SealedPasswordChange
from schemas.withdrawal_requested import SealedWithdrawal

PASSWORD = "correct horse battery"
IBAN = {"type": "iban", "iban": "DE89370400440532013000", "holder_name": "Zoë Äkäslompolo"}
ACCOUNT = {
    "type": "bank_account",
    "country": "CN",
    "bank_code": "102100099996",
    "account_number": "6222020200112233445",
    "holder_name": "张伟",
}
ENVELOPE = {"shop_id": "acme", "event_id": "e-1", "seller_id": "s-1"}
CONTENTS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (SealedEnrolment, {**ENVELOPE, "destination_id": "d-1", "password": PASSWORD, "destination": IBAN}),
    (SealedEnrolment, {**ENVELOPE, "destination_id": "d-1", "password": PASSWORD, "destination": ACCOUNT}),
    (SealedPasswordChange, {**ENVELOPE, "old_password": PASSWORD, "new_password": PASSWORD + "!"}),
    (
        SealedWithdrawal,
        {
            **ENVELOPE,
            "withdrawal_id": "w-1",
            "amount": 500,
            "currency": "EUR",
            "destination_id": "d-1",
            "password": PASSWORD,
        },
    ),
]
FIELDS = [(model, data, name) for model, data in CONTENTS for name in data]
DESTINATION_FIELDS = [(destination, name) for destination in (IBAN, ACCOUNT) for name in destination]


def enrolment(destination: object) -> SealedEnrolment:
    return SealedEnrolment.model_validate({**CONTENTS[0][1], "destination": destination})


def refused_messages(model: type[BaseModel], data: object) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return " ".join(
        error["msg"] for error in caught.value.errors(include_input=False, include_url=False)
    ) + str(caught.value)


@pytest.mark.parametrize(("model", "data"), CONTENTS)
def test_a_complete_content_is_read_and_shows_no_secret(model: type[BaseModel], data: dict[str, Any]) -> None:
    shown = repr(model.model_validate(data))
    for secret in (PASSWORD, IBAN["iban"], ACCOUNT["account_number"]):
        assert secret not in shown


@pytest.mark.parametrize(("model", "data", "name"), FIELDS)
def test_a_missing_field_is_refused(model: type[BaseModel], data: dict[str, Any], name: str) -> None:
    refused_messages(model, {key: value for key, value in data.items() if key != name})


@pytest.mark.parametrize(
    "value", [None, 7.5, True, [], {}, "", "x" * 5_000, "a\x00b"], ids=lambda v: ascii(v)[:12]
)
@pytest.mark.parametrize(("model", "data", "name"), FIELDS)
def test_a_wrong_value_is_refused_and_never_shown(
    model: type[BaseModel], data: dict[str, Any], name: str, value: object
) -> None:
    messages = refused_messages(model, data | {name: value})
    assert "xxxxx" not in messages
    assert PASSWORD not in messages


@pytest.mark.parametrize(("model", "data"), CONTENTS)
def test_an_extra_field_is_refused(model: type[BaseModel], data: dict[str, Any]) -> None:
    refused_messages(model, data | {"note": "x"})


@pytest.mark.parametrize(("destination", "name"), DESTINATION_FIELDS)
def test_a_destination_needs_each_of_its_fields(destination: dict[str, str], name: str) -> None:
    refused_messages(
        SealedEnrolment,
        {**CONTENTS[0][1], "destination": {k: v for k, v in destination.items() if k != name}},
    )


@pytest.mark.parametrize(
    "value", [None, 7, True, [], {}, "", "SECRET" * 40, "SECRET\n", "SECRET\x00", "SECRETé\ud800"], ids=ascii
)
@pytest.mark.parametrize(("destination", "name"), DESTINATION_FIELDS)
def test_a_wrong_destination_is_refused_and_never_shown(
    destination: dict[str, str], name: str, value: object
) -> None:
    messages = refused_messages(
        SealedEnrolment, {**CONTENTS[0][1], "destination": destination | {name: value}}
    )
    assert "SECRET" not in messages


@pytest.mark.parametrize(
    "destination", [None, 7, "SECRET", [], {}, {"type": "SECRET"}, {"type": ["iban"]}, [IBAN]]
)
def test_a_destination_of_no_known_type_is_refused_and_never_shown(destination: object) -> None:
    messages = refused_messages(SealedEnrolment, {**CONTENTS[0][1], "destination": destination})
    assert "SECRET" not in messages


def test_a_field_of_the_other_kind_of_destination_is_refused() -> None:
    refused_messages(SealedEnrolment, {**CONTENTS[0][1], "destination": ACCOUNT | {"iban": IBAN["iban"]}})


@pytest.mark.parametrize(
    "iban", ["DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "de89370400440532013000"]
)
def test_an_iban_has_one_form_inside(iban: str) -> None:
    destination = enrolment(IBAN | {"iban": iban}).destination
    assert destination.type == "iban"
    assert destination.iban == "DE89370400440532013000"


@pytest.mark.parametrize(
    "iban",
    [
        "DE88370400440532013000",
        "DE8937040044053201300",
        "DE893704004405320130000",
        "US64SVBKUS6S3300958879",
        "ZZ89370400440532013000",
        "DE89370400440532013000\n",
        "DE89\t370400440532013000",
        "DE89-3704-0044-0532-0130-00",
        "DE89370400440532O13000",
        "\uff24\uff2589370400440532013000",
        "GB29NWBK6016133192681",
        " " * 20,
    ],
    ids=ascii,
)
def test_an_iban_with_wrong_digits_length_or_country_is_refused(iban: str) -> None:
    messages = refused_messages(SealedEnrolment, {**CONTENTS[0][1], "destination": IBAN | {"iban": iban}})
    assert "Input should be a valid IBAN" in messages
    assert iban.strip() == "" or iban not in messages


def test_sealed_contents_cannot_be_changed() -> None:
    for model, data in CONTENTS:
        content = model.model_validate(data)
        with pytest.raises(ValidationError, match="frozen"):
            content.shop_id = "other"  # type: ignore[attr-defined] # refusing it is the promise
