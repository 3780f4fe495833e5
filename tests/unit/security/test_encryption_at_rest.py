"""What rests in the database opens only with our key and only in its own row."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.security.destinations import mask_account, mask_destination, mask_iban
from infra.security.encryption import BadEncryptionKey, DecryptionFailed, Vault

KEY = base64.b64encode(bytes(range(32))).decode()
NEW_KEY = base64.b64encode(bytes(range(32, 64))).decode()
VAULT = Vault(KEY)
PLAINTEXT = b"DE89370400440532013000"


@given(st.binary(max_size=5_000), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_what_was_encrypted_is_read_back(plaintext: bytes, context: str) -> None:
    assert VAULT.decrypt(VAULT.encrypt(plaintext, context), context) == plaintext


def test_a_ciphertext_moved_to_another_row_does_not_open() -> None:
    envelope = VAULT.encrypt(PLAINTEXT, "destination acme s-1 d-1")
    with pytest.raises(DecryptionFailed):
        VAULT.decrypt(envelope, "destination acme s-2 d-1")


def test_the_same_plaintext_never_gives_the_same_ciphertext() -> None:
    assert len({VAULT.encrypt(PLAINTEXT, "row") for _ in range(100)}) == 100


def test_every_bit_of_a_ciphertext_matters() -> None:
    envelope = VAULT.encrypt(PLAINTEXT, "row")
    for position in range(len(envelope)):
        for bit in range(8):
            changed = bytearray(envelope)
            changed[position] ^= 1 << bit
            with pytest.raises(DecryptionFailed):
                VAULT.decrypt(bytes(changed), "row")


@given(st.binary(max_size=60))
def test_bytes_that_are_no_ciphertext_are_refused(envelope: bytes) -> None:
    with pytest.raises(DecryptionFailed):
        VAULT.decrypt(envelope, "row")


def test_a_shortened_ciphertext_is_refused() -> None:
    envelope = VAULT.encrypt(PLAINTEXT, "row")
    for length in range(len(envelope)):
        with pytest.raises(DecryptionFailed):
            VAULT.decrypt(envelope[:length], "row")


def test_an_old_key_still_opens_and_asks_for_the_new_one() -> None:
    old = VAULT.encrypt(PLAINTEXT, "row")
    rotated = Vault(NEW_KEY, [KEY])
    assert rotated.decrypt(old, "row") == PLAINTEXT
    assert rotated.needs_reencryption(old)
    assert not rotated.needs_reencryption(rotated.encrypt(PLAINTEXT, "row"))


def test_without_the_old_key_an_old_ciphertext_stays_shut() -> None:
    with pytest.raises(DecryptionFailed):
        Vault(NEW_KEY).decrypt(VAULT.encrypt(PLAINTEXT, "row"), "row")


def test_without_a_context_nothing_is_encrypted() -> None:
    with pytest.raises(ValueError, match="context"):
        VAULT.encrypt(PLAINTEXT, "")


@pytest.mark.parametrize("key", ["", "SECRET!", "U0VDUkVU", base64.b64encode(bytes(31)).decode(), "ключ"])
def test_a_key_in_another_form_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(BadEncryptionKey) as caught:
        Vault(key)
    assert not key or key not in str(caught.value)


def test_neither_key_nor_plaintext_stands_in_the_ciphertext() -> None:
    envelope = VAULT.encrypt(PLAINTEXT, "row")
    assert PLAINTEXT not in envelope
    assert not any(base64.b64decode(KEY)[i : i + 4] in envelope for i in range(29))


@pytest.mark.parametrize(
    ("destination", "shown"),
    [
        ({"type": "iban", "iban": "DE89370400440532013000", "holder_name": "Ada"}, "DE89…3000"),
        ({"type": "iban", "iban": "de89 3704 0044 0532 0130 00", "holder_name": "Ada"}, "DE89…3000"),
        ({"type": "iban", "iban": "NO9386011117947", "holder_name": "Ada"}, "NO93…7947"),
        (
            {
                "type": "bank_account",
                "country": "US",
                "bank_code": "021000021",
                "account_number": "000123456789",
                "holder_name": "Ada",
            },
            "US …6789",
        ),
    ],
)
def test_a_destination_is_shown_masked(destination: dict[str, str], shown: str) -> None:
    assert mask_destination(destination) == shown


def test_a_destination_of_unknown_type_is_not_shown() -> None:
    with pytest.raises(ValueError, match="iban or a bank_account") as caught:
        mask_destination({"type": "card", "number": "4111111111111111"})
    assert "4111" not in str(caught.value)


@given(st.text("0123456789ABCDEF", max_size=34))
def test_a_masked_account_never_shows_more_than_a_third(number: str) -> None:
    assert len(mask_account(number)) - 1 <= len(number) / 3


@given(st.text("0123456789ABCDEF", max_size=34))
def test_a_masked_iban_always_hides_a_third_or_more(iban: str) -> None:
    assert len(mask_iban(iban)) - 1 <= len(iban) * 2 / 3
