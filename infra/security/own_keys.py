"""
Holdfast's own key pairs: Ed25519 to sign events, X25519 to open what is sealed to us.

A key's `kid` is its RFC 7638 thumbprint, so a key names itself and two keys never share a name.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from joserfc.jwk import thumbprint

_PUBLIC_MEMBERS: Final = ("kty", "crv", "x", "kid", "use", "alg")


class KeyUse(StrEnum):
    """What a key pair of ours is for; the value is the JWK's `use`."""

    SIGN = "sig"
    SEAL = "enc"


_CURVE: Final = {KeyUse.SIGN: "Ed25519", KeyUse.SEAL: "X25519"}
_ALGORITHM: Final = {KeyUse.SIGN: "EdDSA", KeyUse.SEAL: "ECDH-ES"}


class BadOwnKey(ValueError):
    """A stored key pair is not what it should be. The sentence holds nothing of the key."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """One of Holdfast's key pairs, as a JWK with its private part."""

    kid: str
    use: KeyUse
    private_jwk: Mapping[str, str] = field(repr=False)

    @property
    def public_jwk(self) -> dict[str, str]:
        """What anybody may know: chosen by name, so that no private member can slip out."""
        return {name: self.private_jwk[name] for name in _PUBLIC_MEMBERS}

    def to_bytes(self) -> bytes:
        """Serialise the private JWK, for the vault."""
        return json.dumps(dict(self.private_jwk), sort_keys=True, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, raw: bytes) -> "OwnKey":
        """
        Read what `to_bytes` wrote.

        Raises:
            BadOwnKey: not a private JWK of ours, or its parts do not belong together.
        """
        try:
            jwk = json.loads(raw)
            key = _from_private(KeyUse(jwk["use"]), decode_base64url(jwk["d"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadOwnKey(f"a stored key of Holdfast is damaged ({type(error).__name__})") from None
        if key.private_jwk != jwk:
            raise BadOwnKey("a stored key of Holdfast does not match its own name, use or public part")
        return key


def generate_own_key(use: KeyUse) -> OwnKey:
    """Make a fresh random key pair."""
    generated = Ed25519PrivateKey.generate() if use is KeyUse.SIGN else X25519PrivateKey.generate()
    return _from_private(use, generated.private_bytes_raw())


def public_jwk_set(keys: Iterable[OwnKey]) -> dict[str, list[dict[str, str]]]:
    """Build the JWK Set that `holdfast keys public` prints, keys in the order given."""
    return {"keys": [key.public_jwk for key in keys]}


def decode_base64url(text: str) -> bytes:
    """
    Decode base64url without padding, as JWKs have it.

    Raises:
        ValueError: anything else, also a second spelling of the same bytes.
    """
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encode_base64url(raw) != text:
        raise ValueError("not canonical base64url")
    return raw


def encode_base64url(raw: bytes) -> str:
    """Encode as JWKs have it, without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _from_private(use: KeyUse, private: bytes) -> OwnKey:
    """Everything but the private part is computed, so whatever was stored beside it must agree."""
    key_class = Ed25519PrivateKey if use is KeyUse.SIGN else X25519PrivateKey
    public = key_class.from_private_bytes(private).public_key().public_bytes_raw()
    named = {"kty": "OKP", "crv": _CURVE[use], "x": encode_base64url(public)}
    kid = thumbprint(named)
    return OwnKey(
        kid,
        use,
        named | {"d": encode_base64url(private), "kid": kid, "use": use.value, "alg": _ALGORITHM[use]},
    )
