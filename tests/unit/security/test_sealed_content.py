"""What is sealed opens with our key, whole and in one form only."""

import base64
import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import OctKey, OKPKey

from infra.security.own_keys import BadOwnKey, KeyUse, OwnKey, generate_own_key, public_jwk_set
from infra.security.sealed import MAX_SEALED_CHARS, Opener, SealedRefused, seal

PAIR = generate_own_key(KeyUse.SEAL)
OPENER = Opener([PAIR.private_jwk])
CONTENT = {"shop_id": "acme", "event_id": "e-1", "password": "correct horse — 密码"}
TOKEN = seal(CONTENT, PAIR.public_jwk)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def refused(token: str, opener: Opener = OPENER) -> str:
    with pytest.raises(SealedRefused) as caught:
        opener.open(token)
    assert "correct horse" not in str(caught.value)
    return caught.value.detail


def encode(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def header_of(token: str) -> dict[str, Any]:
    part = token.split(".", maxsplit=1)[0]
    header: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return header


def with_header(header: object) -> str:
    return ".".join([encode(header), *TOKEN.split(".")[1:]])


def sealed_otherwise(alg: str, enc: str, key: OKPKey | OctKey | None = None, **header: object) -> str:
    public = key or OKPKey.import_key({name: PAIR.public_jwk[name] for name in ("kty", "crv", "x")})
    algorithms = [alg, enc, "DEF"]
    return jwe.encrypt_compact(
        {"alg": alg, "enc": enc, "kid": PAIR.kid, **header}, b"{}", public, algorithms=algorithms
    )


def test_what_a_seller_seals_holdfast_reads() -> None:
    assert json.loads(OPENER.open(TOKEN)) == CONTENT


def test_sealing_the_same_twice_gives_two_tokens() -> None:
    assert seal(CONTENT, PAIR.public_jwk) != TOKEN


def test_nothing_of_the_content_stands_readable_in_the_token() -> None:
    for part in TOKEN.split("."):
        assert b"horse" not in base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_every_character_of_a_token_matters() -> None:
    """Each is changed to a neighbour in one bit, which also finds a second spelling of the last bytes."""
    for position, character in enumerate(TOKEN):
        if character == ".":
            changed = TOKEN[:position] + TOKEN[position + 1 :]
            refused(changed)
            continue
        for bit in range(6):
            other = ALPHABET[ALPHABET.index(character) ^ (1 << bit)]
            refused(TOKEN[:position] + other + TOKEN[position + 1 :])


def test_while_keys_rotate_old_and_new_kid_open() -> None:
    new = generate_own_key(KeyUse.SEAL)
    both = Opener([new.private_jwk, PAIR.private_jwk])
    assert json.loads(both.open(TOKEN)) == CONTENT
    assert json.loads(both.open(seal(CONTENT, new.public_jwk))) == CONTENT


def test_a_kid_that_is_not_ours_is_refused() -> None:
    assert "not, or no longer" in refused(TOKEN, Opener([generate_own_key(KeyUse.SEAL).private_jwk]))
    refused(TOKEN, Opener([]))


def test_our_kid_on_somebody_elses_key_is_refused() -> None:
    stranger = generate_own_key(KeyUse.SEAL)
    refused(seal(CONTENT, {**stranger.public_jwk, "kid": PAIR.kid}))


@pytest.mark.parametrize("alg", ["ECDH-ES+A128KW", "ECDH-ES+A256KW"])
def test_another_key_agreement_is_refused(alg: str) -> None:
    assert refused(sealed_otherwise(alg, "A256GCM")) == "alg must be ECDH-ES"


@pytest.mark.parametrize("enc", ["A128GCM", "A192GCM", "A128CBC-HS256", "A256CBC-HS512"])
def test_another_encryption_is_refused(enc: str) -> None:
    assert refused(sealed_otherwise("ECDH-ES", enc)) == "enc must be A256GCM"


@pytest.mark.parametrize("alg", ["dir", "A256KW", "A256GCMKW", "PBES2-HS256+A128KW"])
def test_our_public_key_taken_as_a_shared_secret_opens_nothing(alg: str) -> None:
    secret = OctKey.import_key(base64.urlsafe_b64decode(PAIR.public_jwk["x"] + "="))
    assert refused(sealed_otherwise(alg, "A256GCM", secret)) == "alg must be ECDH-ES"


def test_compressed_content_is_refused() -> None:
    """A few bytes could unpack to gigabytes."""
    refused(sealed_otherwise("ECDH-ES", "A256GCM", zip="DEF"))


@pytest.mark.parametrize(
    "extra",
    [
        {"zip": "DEF"},
        {"crit": ["exp"], "exp": 1},
        {"p2c": 10**9, "p2s": "AAAA"},
        {"jku": "https://example.org/keys"},
        {"x5u": "https://example.org/keys"},
        {"jwk": PAIR.public_jwk},
        {"x5c": ["AAAA"]},
        {"b64": False},
        {"iv": "AAAA", "tag": "AAAA"},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_a_header_parameter_beyond_the_contract_is_refused(extra: dict[str, object]) -> None:
    assert refused(with_header(header_of(TOKEN) | extra)) == "the header has a parameter that is not accepted"


@pytest.mark.parametrize("name", ["alg", "enc", "kid", "epk"])
@pytest.mark.parametrize("value", [None, 1, True, [], {}, "", "none", "x" * 500], ids=ascii)
def test_a_wrong_header_value_is_refused(name: str, value: object) -> None:
    refused(with_header(header_of(TOKEN) | {name: value}))


@pytest.mark.parametrize("name", ["alg", "enc", "kid", "epk"])
def test_a_header_without_one_of_its_members_is_refused(name: str) -> None:
    refused(with_header({key: value for key, value in header_of(TOKEN).items() if key != name}))


@pytest.mark.parametrize("name", ["apu", "apv", "typ", "cty"])
def test_an_optional_member_that_is_not_text_is_refused(name: str) -> None:
    refused(with_header(header_of(TOKEN) | {name: {"a": 1}}))


def test_optional_members_as_other_libraries_write_them_are_accepted() -> None:
    token = sealed_otherwise("ECDH-ES", "A256GCM", apu="QWxpY2U", apv="Qm9i", typ="JWE", cty="json")
    assert OPENER.open(token) == b"{}"


def test_a_member_that_stands_twice_is_refused() -> None:
    text = json.dumps(header_of(TOKEN))
    doubled = text[:-1] + f', "kid": "{PAIR.kid}"}}'
    part = base64.urlsafe_b64encode(doubled.encode()).decode().rstrip("=")
    refused(".".join([part, *TOKEN.split(".")[1:]]))


@pytest.mark.parametrize(
    "epk",
    [
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
        {"kty": "OKP", "crv": "X25519", "x": "AQ" + "A" * 41},
        {"kty": "OKP", "crv": "X448", "x": "A" * 75},
        {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43},
        {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 42},
        {"kty": "OKP", "crv": "X25519", "x": 7},
        {"kty": "OKP", "crv": "X25519"},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43, "d": "A" * 43},
    ],
    ids=json.dumps,
)
def test_a_hostile_ephemeral_key_is_refused(epk: dict[str, object]) -> None:
    """Among them points of low order, with which the shared secret would be known to all."""
    refused(with_header(header_of(TOKEN) | {"epk": epk}))


@pytest.mark.parametrize(
    "token",
    [
        *(
            "",
            ".",
            "....",
            ".....",
            "a.b.c",
            TOKEN + ".",
            TOKEN + "=",
            "é" + TOKEN,
            TOKEN + "\n",
            " " + TOKEN,
        ),
        *map(with_header, ([], "x", 1, None)),
        "x" * (MAX_SEALED_CHARS + 1),
        TOKEN + "A" * MAX_SEALED_CHARS,
        base64.urlsafe_b64encode(b"[" * 750).decode() + "." * 4,
    ],
    ids=count(),  # the tokens themselves are new in every run
)
def test_what_is_no_token_is_refused(token: str) -> None:
    refused(token)


def test_an_encrypted_key_has_no_place() -> None:
    parts = TOKEN.split(".")
    parts[1] = "AAAA"
    refused(".".join(parts))


@pytest.mark.parametrize("part", [2, 4])
def test_a_shortened_vector_or_tag_is_refused(part: int) -> None:
    """A short GCM tag would be easy to guess."""
    parts = TOKEN.split(".")
    parts[part] = parts[part][:4]
    refused(".".join(parts))


@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]*(\.[A-Za-z0-9_-]*){4}", fullmatch=True))
def test_no_text_does_worse_than_be_refused(token: str) -> None:
    refused(token)


def test_a_key_names_itself_and_shows_no_private_part() -> None:
    for use, curve, alg in ((KeyUse.SIGN, "Ed25519", "EdDSA"), (KeyUse.SEAL, "X25519", "ECDH-ES")):
        pair = generate_own_key(use)
        assert pair.public_jwk == {
            "kty": "OKP",
            "crv": curve,
            "x": pair.private_jwk["x"],
            "kid": pair.kid,
            "use": use.value,
            "alg": alg,
        }
        assert pair.private_jwk["d"] not in repr(pair)
        assert pair.private_jwk["d"] not in json.dumps(public_jwk_set([pair]))
        assert OwnKey.from_bytes(pair.to_bytes()) == pair


def test_a_kid_is_the_rfc_7638_thumbprint() -> None:
    """RFC 8037, appendix A.3."""
    raw = json.dumps(
        {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
            "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
            "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
            "use": "sig",
            "alg": "EdDSA",
        }
    )
    assert OwnKey.from_bytes(raw.encode()).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize("name", ["kty", "crv", "x", "d", "kid", "use", "alg"])
@pytest.mark.parametrize("value", [None, "", "A" * 43, 7])
def test_a_stored_key_whose_parts_disagree_is_refused(name: str, value: object) -> None:
    damaged = dict(PAIR.private_jwk) | {name: value}
    with pytest.raises(BadOwnKey) as caught:
        OwnKey.from_bytes(json.dumps(damaged).encode())
    assert PAIR.private_jwk["d"] not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{}", b"\xff"])
def test_stored_bytes_that_are_no_key_are_refused(raw: bytes) -> None:
    with pytest.raises(BadOwnKey):
        OwnKey.from_bytes(raw)
