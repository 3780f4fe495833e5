"""A message counts only if a key of its sender signed exactly these bytes, lately."""

import base64
import hmac
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from infra.security.ed25519_points import BadPublicKey, check_public_key
from infra.security.own_keys import KeyUse, decode_base64url, generate_own_key
from infra.security.signatures import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    InvalidKey,
    Scheme,
    SignatureRefused,
    Signer,
    VerifiedSignature,
    VerifyingKey,
    _hmac_sha256,
    _pads,
    parse_ed25519_public,
    parse_hmac_secret,
    sign_v1,
    sign_v1a,
    verify,
)
from schemas.reasons import QuarantineReason

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
SIGNED_AT = int(NOW.timestamp())
BODY = b'{"specversion":"1.0","id":"e-1","type":"order.paid","data":{"amount":1250}}'
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SECRET = bytes(range(100, 132))
ORDERS = frozenset({"orders"})
V1A_KEY = VerifyingKey(
    key_id="v1a-key",
    scheme=Scheme.ED25519,
    scopes=ORDERS,
    material=PRIVATE.public_key().public_bytes_raw(),
)
V1_KEY = VerifyingKey(key_id="v1-key", scheme=Scheme.HMAC_SHA256, scopes=ORDERS, material=SECRET)
V1A_HEADERS = sign_v1a(PRIVATE, "e-1", SIGNED_AT, BODY)
V1_HEADERS = sign_v1(SECRET, "e-1", SIGNED_AT, BODY)
BOTH = pytest.mark.parametrize(
    ("key", "signed"), [(V1A_KEY, V1A_HEADERS), (V1_KEY, V1_HEADERS)], ids=["v1a", "v1"]
)

# The eight points of low order in all their encodings, canonical or not (as libsodium lists them).
LOW_ORDER = [bytes.fromhex(start + "00" * 30 + end) for start in ("00", "01") for end in ("00", "80")] + [
    bytes.fromhex(y + end)
    for y in (
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    )
    for end in (("05", "85") if y.startswith("26") else ("7a", "fa") if y.startswith("c7") else ("7f", "ff"))
]


def check(
    headers: Any, *keys: VerifyingKey, body: bytes = BODY, now: datetime = NOW, scope: str | None = "orders"
) -> VerifiedSignature:
    return verify(
        body=body, headers=headers, keys=keys, now=now, max_age_s=3600, max_ahead_s=300, scope=scope
    )


def refusal(headers: Any, *keys: VerifyingKey, **others: Any) -> SignatureRefused:
    with pytest.raises(SignatureRefused) as caught:
        check(headers, *keys, **others)
    return caught.value


@BOTH
def test_a_signed_message_is_attributed_to_its_key(key: VerifyingKey, signed: dict[str, str]) -> None:
    assert check(signed, key) == VerifiedSignature(key, "e-1", SIGNED_AT)


@BOTH
def test_every_bit_of_the_body_matters(key: VerifyingKey, signed: dict[str, str]) -> None:
    for position in range(len(BODY)):
        for bit in range(8):
            changed = bytearray(BODY)
            changed[position] ^= 1 << bit
            assert refusal(signed, key, body=bytes(changed)).reason is QuarantineReason.BAD_SIGNATURE


@BOTH
def test_every_bit_of_every_header_matters(key: VerifyingKey, signed: dict[str, str]) -> None:
    """Also the unused bits at the end of base64: a signature has one spelling."""
    for name, value in signed.items():
        for position in range(len(value)):
            for bit in range(8):
                changed = bytearray(value.encode())
                changed[position] ^= 1 << bit
                refusal({**signed, name: bytes(changed)}, key)


@BOTH
@pytest.mark.parametrize("body", [b"", BODY[:-1], BODY + b"\n", b" " + BODY])
def test_a_body_that_was_cut_or_grew_is_refused(
    key: VerifyingKey, signed: dict[str, str], body: bytes
) -> None:
    refusal(signed, key, body=body)


def test_rfc_8032_test_vector_is_reproduced_and_verified() -> None:
    """Section 7.1, TEST 2; our own content is longer than its one byte, so the key is tried on both."""
    private = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    assert parse_ed25519_public(base64.b64encode(public).decode()) == public
    assert private.public_key().public_bytes_raw() == public
    assert private.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    key = VerifyingKey(key_id="rfc", scheme=Scheme.ED25519, scopes=ORDERS, material=public)
    assert check(sign_v1a(private, "e-1", SIGNED_AT, BODY), key).key is key


def test_an_ed25519_signature_with_its_scalar_raised_by_the_group_order_is_refused() -> None:
    """Malleability: S + L satisfies the equation too, RFC 8032 forbids it."""
    order = 2**252 + 27742317777372353535851937790883648493
    raw = base64.b64decode(V1A_HEADERS[SIGNATURE_HEADER].removeprefix("v1a,"))
    raised = raw[:32] + (int.from_bytes(raw[32:], "little") + order).to_bytes(32, "little")
    forged = f"v1a,{base64.b64encode(raised).decode()}"
    refusal({**V1A_HEADERS, SIGNATURE_HEADER: forged}, V1A_KEY)


def test_what_standardwebhooks_signs_we_accept() -> None:
    text = BODY.decode()
    signature = Webhook(SECRET).sign("e-1", NOW, text)
    headers = {ID_HEADER: "e-1", TIMESTAMP_HEADER: str(SIGNED_AT), SIGNATURE_HEADER: signature}
    assert check(headers, V1_KEY).webhook_id == "e-1"


def test_what_we_sign_standardwebhooks_accepts() -> None:
    """Its window is fixed at five minutes of the real clock, so this signs now."""
    secret = "whsec_" + base64.b64encode(SECRET).decode()
    headers = sign_v1(parse_hmac_secret(secret), "e-1", int(datetime.now(UTC).timestamp()), BODY)
    assert Webhook(secret).verify(BODY, headers) == json.loads(BODY)


def test_our_own_events_verify_with_the_published_key_alone() -> None:
    pair = generate_own_key(KeyUse.SIGN)
    headers = Signer.from_jwks([pair.private_jwk]).headers("e-9", BODY, NOW)
    public = decode_base64url(pair.public_jwk["x"])
    key = VerifyingKey(key_id="own", scheme=Scheme.ED25519, scopes=frozenset(), material=public)
    assert check(headers, key, scope=None).timestamp == SIGNED_AT


def test_only_an_ed25519_key_signs_our_events() -> None:
    with pytest.raises(InvalidKey):
        Signer.from_jwks([generate_own_key(KeyUse.SEAL).private_jwk])


@pytest.mark.parametrize("spaces", [" ", "  "])
def test_one_valid_signature_among_others_is_enough(spaces: str) -> None:
    others = ["v1a," + "A" * 86 + "==", *["v2,whatever"] * 20, *["v1,AAAA"] * 20, "v1a,", ",", "nonsense"]
    header = spaces.join([*others, V1A_HEADERS[SIGNATURE_HEADER]])
    assert check({**V1A_HEADERS, SIGNATURE_HEADER: header}, V1_KEY, V1A_KEY).key is V1A_KEY


def test_while_keys_rotate_either_key_is_enough() -> None:
    other = Ed25519PrivateKey.generate()
    new = VerifyingKey(
        key_id="new",
        scheme=Scheme.ED25519,
        scopes=ORDERS,
        material=other.public_key().public_bytes_raw(),
    )
    assert check(V1A_HEADERS, new, V1A_KEY).key is V1A_KEY
    assert check(sign_v1a(other, "e-1", SIGNED_AT, BODY), new, V1A_KEY).key is new


@pytest.mark.parametrize(
    "header",
    [
        "v2," + V1A_HEADERS[SIGNATURE_HEADER].removeprefix("v1a,"),
        "V1A," + V1A_HEADERS[SIGNATURE_HEADER].removeprefix("v1a,"),
        V1A_HEADERS[SIGNATURE_HEADER].removeprefix("v1a,"),
        V1A_HEADERS[SIGNATURE_HEADER].replace(",", ", "),
        V1A_HEADERS[SIGNATURE_HEADER].rstrip("="),
        V1A_HEADERS[SIGNATURE_HEADER] + "=",
        V1A_HEADERS[SIGNATURE_HEADER].replace("v1a,", "v1a,\n"),
        "v1a," + "A" * 88,
        "v1a,!!!!",
        "v1a,é",
        "v1a,",
        ",",
        " ",
    ],
)
def test_a_signature_in_another_form_is_refused(header: str) -> None:
    assert (
        refusal({**V1A_HEADERS, SIGNATURE_HEADER: header}, V1A_KEY).reason is QuarantineReason.BAD_SIGNATURE
    )


def test_a_public_key_used_as_hmac_secret_forges_nothing() -> None:
    """The classic confusion: a public key is known to all, so it must not serve as a secret."""
    headers = sign_v1(V1A_KEY.material, "e-1", SIGNED_AT, BODY)
    refusal(headers, V1A_KEY)
    relabelled = headers[SIGNATURE_HEADER].replace("v1,", "v1a,")
    refusal({**headers, SIGNATURE_HEADER: relabelled}, V1A_KEY)


def test_no_active_key_means_no_signature_fits() -> None:
    assert refusal(V1A_HEADERS).reason is QuarantineReason.BAD_SIGNATURE


def test_another_senders_key_does_not_fit() -> None:
    other = VerifyingKey(
        key_id="other",
        scheme=Scheme.ED25519,
        scopes=ORDERS,
        material=Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
    )
    refusal(V1A_HEADERS, other)


def test_a_key_without_the_scope_counts_as_no_signature() -> None:
    assert refusal(V1A_HEADERS, V1A_KEY, scope="sellers").reason is QuarantineReason.WRONG_SCOPE


def test_a_second_signature_with_the_scope_heals_one_without() -> None:
    sellers = VerifyingKey(
        key_id="s", scheme=Scheme.HMAC_SHA256, scopes=frozenset({"sellers"}), material=SECRET
    )
    header = f"{V1A_HEADERS[SIGNATURE_HEADER]} {V1_HEADERS[SIGNATURE_HEADER]}"
    assert check({**V1A_HEADERS, SIGNATURE_HEADER: header}, V1A_KEY, sellers, scope="sellers").key is sellers


def test_a_key_good_for_both_scopes_is_good_for_each() -> None:
    both = VerifyingKey(
        key_id="b", scheme=Scheme.HMAC_SHA256, scopes=frozenset({"orders", "sellers"}), material=SECRET
    )
    assert check(V1_HEADERS, both, scope="orders").key is both
    assert check(V1_HEADERS, both, scope="sellers").key is both


@pytest.mark.parametrize("seconds", [-300, 0, 3600])
def test_a_timestamp_at_the_edge_of_the_window_is_accepted(seconds: int) -> None:
    check(V1A_HEADERS, V1A_KEY, now=NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("seconds", [-300.001, 3600.001, 10**9, -(10**9)])
def test_a_timestamp_outside_the_window_is_stale(seconds: float) -> None:
    refused = refusal(V1A_HEADERS, V1A_KEY, now=NOW + timedelta(seconds=seconds))
    assert refused.reason is QuarantineReason.STALE_TIMESTAMP


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        " ",
        "-1",
        "+1",
        "1.0",
        "1e9",
        "0x10",
        "1_000",
        "٣",
        "²",
        f" {SIGNED_AT}",
        f"{SIGNED_AT}\n",
        "9" * 13,
        *(b"\xff", True, False, -1, 10**18, 1.5, Decimal(SIGNED_AT), None, [], {}, NOW),
    ],
    ids=repr,
)
def test_a_timestamp_that_is_not_unix_seconds_is_refused(timestamp: object) -> None:
    refusal({**V1A_HEADERS, TIMESTAMP_HEADER: timestamp}, V1A_KEY)


def test_headers_may_come_as_bytes_and_the_timestamp_as_a_number() -> None:
    """What AMQP clients in other languages send for the same header."""
    check({**V1A_HEADERS, TIMESTAMP_HEADER: SIGNED_AT}, V1A_KEY)
    check({name: value.encode() for name, value in V1A_HEADERS.items()}, V1A_KEY)


@pytest.mark.parametrize("name", list(V1A_HEADERS))
def test_a_missing_header_is_refused_by_name(name: str) -> None:
    headers = {key: value for key, value in V1A_HEADERS.items() if key != name}
    refused = refusal(headers, V1A_KEY)
    assert refused.reason is QuarantineReason.BAD_SIGNATURE
    assert name in refused.detail


AMQP_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.decimals()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(name=st.sampled_from(list(V1A_HEADERS)), value=AMQP_VALUES)
def test_no_header_value_does_worse_than_be_refused(name: str, value: object) -> None:
    with pytest.raises(SignatureRefused):
        check({**V1A_HEADERS, name: value}, V1A_KEY, V1_KEY)


@pytest.mark.parametrize("name", list(V1A_HEADERS))
def test_a_huge_header_is_refused_and_not_repeated(name: str) -> None:
    refused = refusal({**V1A_HEADERS, name: "x" * 1_000_000}, V1A_KEY)
    assert len(str(refused)) < 200


@given(secret=st.binary(min_size=1, max_size=200), messages=st.lists(st.binary(max_size=300), max_size=4))
def test_hmac_from_kept_pads_is_hmac(secret: bytes, messages: list[bytes]) -> None:
    """RFC 2104 for secrets of any length, however often the same pads were used."""
    pads = _pads(secret)
    for message in messages:
        assert _hmac_sha256(pads, message) == hmac.digest(secret, message, "sha256")


@BOTH
@pytest.mark.parametrize("order", [1, -1])
def test_a_sender_with_keys_of_both_schemes_signs_with_either(
    key: VerifyingKey, signed: dict[str, str], order: int
) -> None:
    assert check(signed, *[V1_KEY, V1A_KEY][::order]).key is key
    both = {**signed, SIGNATURE_HEADER: f"{V1A_HEADERS[SIGNATURE_HEADER]} {V1_HEADERS[SIGNATURE_HEADER]}"}
    assert check(both, *[V1_KEY, V1A_KEY][::order]).key in {V1_KEY, V1A_KEY}


def test_a_flood_of_signatures_in_one_header_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = Ed25519PrivateKey.generate().public_key()

    class Counting:
        def verify(self, signature: bytes, data: bytes) -> None:
            tried.append(signature)
            real.verify(signature, data)

    monkeypatch.setattr("infra.security.signatures._public_key", lambda _: Counting())
    parts = (base64.b64encode(bytes([i]) * 64).decode() for i in range(40))
    refusal({**V1A_HEADERS, SIGNATURE_HEADER: " ".join(f"v1a,{part}" for part in parts)}, V1A_KEY)
    assert 0 < len(tried) <= 10


def test_an_honest_message_tries_no_key_after_the_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = PRIVATE.public_key()

    def load(material: bytes) -> object:
        asked.append(material)
        return real

    monkeypatch.setattr("infra.security.signatures._public_key", load)
    other = VerifyingKey(key_id="o", scheme=Scheme.ED25519, scopes=ORDERS, material=b"other")
    check(V1A_HEADERS, V1A_KEY, other)
    assert asked == [V1A_KEY.material]


def test_key_material_is_never_shown() -> None:
    assert "material" not in repr(V1_KEY)
    assert repr(SECRET) not in repr(V1_KEY)


@pytest.mark.parametrize("raw", LOW_ORDER, ids=bytes.hex)
def test_a_key_under_which_anybody_can_sign_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidKey):
        parse_ed25519_public(base64.b64encode(raw).decode())


def test_a_low_order_key_that_got_into_the_database_verifies_nothing() -> None:
    """Under the neutral point the signature (neutral point, 0) fits every message."""
    neutral = b"\x01" + bytes(31)
    forged = f"v1a,{base64.b64encode(neutral + bytes(32)).decode()}"
    key = VerifyingKey(key_id="low", scheme=Scheme.ED25519, scopes=ORDERS, material=neutral)
    refusal({**V1A_HEADERS, SIGNATURE_HEADER: forged}, key)


@pytest.mark.parametrize("material", [b"", b"\x02" + bytes(31), bytes(31), bytes(33), b"\xff" * 32])
def test_damaged_key_material_refuses_the_message_and_stops_nothing(material: bytes) -> None:
    key = VerifyingKey(key_id="bad", scheme=Scheme.ED25519, scopes=ORDERS, material=material)
    refusal(V1A_HEADERS, key)
    assert check(V1A_HEADERS, key, V1A_KEY).key is V1A_KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not base64!",
        base64.b64encode(bytes(31)).decode(),
        base64.b64encode(bytes(33)).decode(),
        base64.b64encode(b"\x02" + bytes(31)).decode(),
        base64.b64encode(b"\xff" * 32).decode(),
        base64.b64encode(V1A_KEY.material).decode().rstrip("="),
        base64.urlsafe_b64encode(b"\xfb" * 32).decode(),
        "ключ",
    ],
)
def test_a_public_key_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidKey):
        parse_ed25519_public(text)


@given(st.binary(min_size=32, max_size=32))
def test_every_real_public_key_is_accepted(seed: bytes) -> None:
    raw = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert parse_ed25519_public(f" {base64.b64encode(raw).decode()}\n") == raw


@given(st.binary(max_size=40))
def test_any_bytes_are_a_key_or_refused(raw: bytes) -> None:
    try:
        check_public_key(raw)
    except BadPublicKey:
        return
    assert len(raw) == 32


@pytest.mark.parametrize("size", [24, 32, 64])
def test_an_hmac_secret_of_a_proper_size_is_read(size: int) -> None:
    raw = bytes(range(1, size + 1))
    assert parse_hmac_secret(f"whsec_{base64.b64encode(raw).decode()}\n") == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsec_SECRET!",
        base64.b64encode(SECRET).decode(),
        "WHSEC_" + base64.b64encode(SECRET).decode(),
        "whsec_" + base64.b64encode(SECRET[:23]).decode(),
        "whsec_" + base64.b64encode(SECRET * 3).decode(),
        "whsec_" + base64.b64encode(bytes(32)).decode(),
        "whsec_" + base64.b64encode(SECRET).decode().rstrip("="),
        "whsec_" + base64.b64encode(SECRET).decode() + "\x00",
    ],
)
def test_an_hmac_secret_in_another_form_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        parse_hmac_secret(text)
    said = str(caught.value)
    assert "SECRET" not in said
    assert base64.b64encode(SECRET).decode()[:12] not in said
