"""
Sealed content: what only Holdfast may read, as compact JWE (RFC 7516).

One algorithm (`ECDH-ES`), one encryption (`A256GCM`), one curve (X25519). The protected header is
read and judged here before any cryptography sees the token, so no other algorithm, compression or
extension can be talked into being used.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from infra.security.own_keys import decode_base64url

ALGORITHM: Final = "ECDH-ES"
ENCRYPTION: Final = "A256GCM"

# The same bound as the event's field: ids, a password and an account need a tenth of it.
MAX_SEALED_CHARS: Final = 16_384
_MAX_HEADER_CHARS: Final = 1_024
_PARTS: Final = 5
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_X25519_BYTES: Final = 32
_MAX_KID_CHARS: Final = 128

# What else a header may say changes nothing about how the token is opened; all others are refused:
# zip, crit, p2c, jku, jwk, x5u and whatever comes next.
_REQUIRED_MEMBERS: Final = frozenset({"alg", "enc", "kid", "epk"})
_OPTIONAL_MEMBERS: Final = frozenset({"apu", "apv", "typ", "cty"})
_EPK_MEMBERS: Final = frozenset({"kty", "crv", "x"})


class SealedRefused(Exception):
    """The token does not open. `detail` says why and holds nothing of its content."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Opener:
    """Opens what was sealed to one of our private keys, chosen by `kid`."""

    def __init__(self, private_jwks: Sequence[Mapping[str, str]]) -> None:
        """
        Load the keys.

        Args:
            private_jwks: OKP X25519 JWKs with `d` and `kid`, all that are still accepted.
        """
        self._keys = {jwk["kid"]: _import_key(jwk) for jwk in private_jwks}

    def open(self, token: str) -> bytes:
        """
        Return the plaintext.

        Raises:
            SealedRefused: not the one form that we accept, not for a key of ours, or tampered with.
        """
        kid = _judge(token)
        key = self._keys.get(kid)
        if key is None:
            raise SealedRefused("sealed to a key that is not, or no longer, ours")
        try:
            opened = jwe.decrypt_compact(token, key, algorithms=[ALGORITHM, ENCRYPTION])
        # What a hostile token raises depends on how deep it gets: joserfc asserts, OpenSSL raises ValueError.
        except (JoseError, ValueError, TypeError, KeyError, AssertionError):
            raise SealedRefused("does not open with the key that it names") from None
        if opened.plaintext is None:
            raise SealedRefused("holds nothing")
        return opened.plaintext


def seal(payload: Mapping[str, object], public_jwk: Mapping[str, str]) -> str:
    """
    Seal a JSON object to Holdfast's public key, as a seller's platform does.

    Args:
        payload: `shop_id`, `event_id` and the fields that the event's type asks for.
        public_jwk: The X25519 key from `holdfast keys public`.
    """
    header: dict[str, Any] = {"alg": ALGORITHM, "enc": ENCRYPTION, "kid": public_jwk["kid"]}
    public = {name: public_jwk[name] for name in ("kty", "crv", "x")}
    return jwe.encrypt_compact(
        header,
        json.dumps(payload, ensure_ascii=False).encode(),
        _import_key(public),
        algorithms=[ALGORITHM, ENCRYPTION],
    )


def _import_key(jwk: Mapping[str, str]) -> OKPKey:
    return OKPKey.import_key({name: jwk[name] for name in ("kty", "crv", "x", "d") if name in jwk})


def _judge(token: str) -> str:
    """Check the token's form and return the `kid` that it names."""
    if len(token) > MAX_SEALED_CHARS:
        raise SealedRefused(f"longer than {MAX_SEALED_CHARS} characters")
    if not token.isascii():
        raise SealedRefused("not a compact JWE")
    parts = token.split(".")
    if len(parts) != _PARTS:
        raise SealedRefused("not a compact JWE")
    header_part, encrypted_key, iv, ciphertext, tag = parts
    if len(header_part) > _MAX_HEADER_CHARS:
        raise SealedRefused("the header is too long")
    try:
        header = json.loads(decode_base64url(header_part), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        raise SealedRefused("not a compact JWE") from None
    if not isinstance(header, dict):
        raise SealedRefused("the header is no JSON object")
    kid = _judge_header(header)
    if encrypted_key:
        raise SealedRefused(f"{ALGORITHM} carries no encrypted key")
    try:
        sizes_are_right = len(decode_base64url(iv)) == _IV_BYTES and len(decode_base64url(tag)) == _TAG_BYTES
        decode_base64url(ciphertext)
    except ValueError:
        raise SealedRefused("not a compact JWE") from None
    if not sizes_are_right:
        raise SealedRefused("the initialisation vector or tag has a wrong size")
    return kid


def _judge_header(header: Mapping[str, object]) -> str:
    if header.get("alg") != ALGORITHM:
        raise SealedRefused(f"alg must be {ALGORITHM}")
    if header.get("enc") != ENCRYPTION:
        raise SealedRefused(f"enc must be {ENCRYPTION}")
    if not header.keys() >= _REQUIRED_MEMBERS:
        raise SealedRefused("the header needs alg, enc, kid and epk")
    if not header.keys() <= _REQUIRED_MEMBERS | _OPTIONAL_MEMBERS:
        raise SealedRefused("the header has a parameter that is not accepted")
    if any(not isinstance(header[name], str) for name in _OPTIONAL_MEMBERS & header.keys()):
        raise SealedRefused("a header parameter is not text")
    _judge_ephemeral_key(header["epk"])
    kid = header["kid"]
    if not isinstance(kid, str) or len(kid) > _MAX_KID_CHARS:
        raise SealedRefused("kid is not a key's name")
    return kid


def _judge_ephemeral_key(epk: object) -> None:
    if not isinstance(epk, dict) or epk.keys() != _EPK_MEMBERS:
        raise SealedRefused("epk must have kty, crv and x, and nothing else")
    x = epk["x"]
    try:
        is_x25519 = (
            epk["kty"] == "OKP"
            and epk["crv"] == "X25519"
            and isinstance(x, str)
            and len(decode_base64url(x)) == _X25519_BYTES
        )
    except ValueError:
        is_x25519 = False
    if not is_x25519:
        raise SealedRefused("epk must be an X25519 public key")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(members := dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice")
    return members
