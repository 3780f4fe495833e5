"""
Standard Webhooks signatures over AMQP: `v1a` (Ed25519) and `v1` (HMAC-SHA256).

The signed content is `{webhook-id}.{webhook-timestamp}.{raw body}`; see https://www.standardwebhooks.com/.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct

from infra.security.ed25519_points import BadPublicKey, check_public_key
from schemas.reasons import QuarantineReason

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

_SECRET_PREFIX = "whsec_"  # noqa: S105 - the standard's prefix, not a secret
_MIN_SECRET_BYTES, _MAX_SECRET_BYTES = 24, 64  # Standard Webhooks, 'Symmetric keys'
_MAX_SIGNATURES = 10
_MAX_HEADER_CHARACTERS = 4096
_BLOCK_BYTES = 64  # of SHA-256, RFC 6234
_MAX_TIMESTAMP_DIGITS = 12


class InvalidKey(ValueError):
    """Key material that can't be used; the sentence never repeats it."""


class SignatureRefused(Exception):
    """A message is not authentic; it goes to quarantine with this reason."""

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Scheme(StrEnum):
    ED25519 = "v1a"
    HMAC_SHA256 = "v1"


# Only what can be a signature counts against the bound on how many are tried.
_SIGNATURE_BYTES: Final = {Scheme.ED25519: 64, Scheme.HMAC_SHA256: 32}
_SCHEMES: Final = {scheme.value: scheme for scheme in Scheme}


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """One key of a sender; `material` is the raw public key or the raw secret and is never shown."""

    key_id: str
    scheme: Scheme
    scopes: frozenset[str]
    material: bytes
    # Goes when the key goes.
    pads: "_Pads | None" = field(init=False, repr=False, compare=False)
    # What stands before each of its signatures.
    mark: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mark", f"{self.scheme},")
        pads = _pads(self.material) if self.scheme is Scheme.HMAC_SHA256 else None
        object.__setattr__(self, "pads", pads)

    def __repr__(self) -> str:
        return f"VerifyingKey({self.key_id}, {self.scheme}, {sorted(self.scopes)})"


class VerifiedSignature(Struct, frozen=True, gc=False):
    key: VerifyingKey
    webhook_id: str
    timestamp: int


def parse_ed25519_public(text: str) -> bytes:
    """
    Read a raw Ed25519 public key in standard base64.

    Raises:
        InvalidKey: no base64, not 32 bytes, no point, not its canonical encoding, or of low order.
    """
    raw = _decode(text.strip())
    if raw is None:
        raise InvalidKey("the Ed25519 public key is not standard base64")
    try:
        check_public_key(raw)
    except BadPublicKey as error:
        raise InvalidKey(str(error)) from error
    return raw


def parse_hmac_secret(text: str) -> bytes:
    """
    Read a secret of the form `whsec_<base64>`.

    Raises:
        InvalidKey: another form, no base64, not 24 to 64 bytes, or nothing but zeros.
    """
    text = text.strip()
    if not text.startswith(_SECRET_PREFIX):
        raise InvalidKey(f"an HMAC secret starts with {_SECRET_PREFIX}")
    raw = _decode(text.removeprefix(_SECRET_PREFIX))
    if raw is None:
        raise InvalidKey(f"what follows {_SECRET_PREFIX} is not standard base64")
    if not _MIN_SECRET_BYTES <= len(raw) <= _MAX_SECRET_BYTES:
        raise InvalidKey(
            f"an HMAC secret has {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} bytes, not {len(raw)}"
        )
    if not any(raw):
        raise InvalidKey("the HMAC secret is all zeros")
    return raw


def verify(
    *,
    body: bytes,
    headers: Mapping[str, object],
    keys: Sequence[VerifyingKey],
    now: datetime,
    max_age_s: int,
    max_ahead_s: int,
    scope: str | None,
) -> VerifiedSignature:
    """
    Check a message's signatures; one valid one from a key that is good for `scope` is enough.

    The signature is checked before the timestamp is judged, so 'stale' is only ever said of a message
    that its sender really signed.

    Raises:
        SignatureRefused: with the reason for quarantine.
    """
    webhook_id, timestamp, signature = _texts(headers)
    if not (timestamp.isdecimal() and len(timestamp) <= _MAX_TIMESTAMP_DIGITS):
        raise SignatureRefused(QuarantineReason.BAD_SIGNATURE, f"{TIMESTAMP_HEADER} is not Unix seconds")
    signatures = _Signatures(signature)
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    # An honest message ends at its first right key; the others are not tried.
    right_key = wrong_key = None
    for key in keys:
        if not signatures.fit(key, signed):
            continue
        if scope is None or scope in key.scopes:
            right_key = key
            break
        wrong_key = key
    if right_key is None and wrong_key is None:
        raise SignatureRefused(
            QuarantineReason.BAD_SIGNATURE,
            "no signature of an active key fits"
            if signatures.usable
            else f"{SIGNATURE_HEADER} holds no v1 or v1a",
        )
    unix_s = int(timestamp)
    age_s = now.timestamp() - unix_s
    if age_s > max_age_s or age_s < -max_ahead_s:
        raise SignatureRefused(
            QuarantineReason.STALE_TIMESTAMP,
            f"{TIMESTAMP_HEADER} is {round(abs(age_s))} s {'old' if age_s > 0 else 'ahead'}",
        )
    if right_key is None:
        raise SignatureRefused(QuarantineReason.WRONG_SCOPE, f"the key lacks the scope {scope}")
    return VerifiedSignature(right_key, webhook_id, unix_s)


class Signer:
    """Signs Holdfast's own events: once with each of its Ed25519 keys, so that rotated keys overlap."""

    def __init__(self, private_keys: Sequence[Ed25519PrivateKey]) -> None:
        self._private_keys = tuple(private_keys)

    @classmethod
    def from_jwks(cls, private_jwks: Sequence[Mapping[str, str]]) -> "Signer":
        """
        Build the signer of private Ed25519 JWKs; the first one's signature stands first.

        Raises:
            InvalidKey: a key of another kind, or none.
        """
        if not private_jwks or any(jwk.get("crv") != "Ed25519" for jwk in private_jwks):
            raise InvalidKey("events are signed with an Ed25519 key")
        return cls([Ed25519PrivateKey.from_private_bytes(_private_bytes(jwk)) for jwk in private_jwks])

    def headers(self, message_id: str, body: bytes, now: datetime) -> dict[str, str]:
        """Return the three headers for a message that is published now."""
        timestamp = int(now.timestamp())
        headers, *others = [sign_v1a(key, message_id, timestamp, body) for key in self._private_keys]
        signatures = [headers[SIGNATURE_HEADER], *(other[SIGNATURE_HEADER] for other in others)]
        return headers | {SIGNATURE_HEADER: " ".join(signatures)}


def _private_bytes(private_jwk: Mapping[str, str]) -> bytes:
    return base64.urlsafe_b64decode(private_jwk["d"] + "=" * (-len(private_jwk["d"]) % 4))


def sign_v1a(private_key: Ed25519PrivateKey, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Sign with Ed25519; return the three headers."""
    signature = private_key.sign(_signed_content(message_id, timestamp, body))
    return _headers(message_id, timestamp, Scheme.ED25519, signature)


def sign_v1(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Sign with HMAC-SHA256; return the three headers."""
    signature = hmac.digest(secret, _signed_content(message_id, timestamp, body), "sha256")
    return _headers(message_id, timestamp, Scheme.HMAC_SHA256, signature)


def _signed_content(message_id: str, timestamp: int, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode() + body


def _headers(message_id: str, timestamp: int, scheme: Scheme, signature: bytes) -> dict[str, str]:
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: f"{scheme},{_encode(signature)}",
    }


def _texts(headers: Mapping[str, object]) -> tuple[str, str, str]:
    """Read the three headers: printable ASCII, none of them empty. Where they are text, at once."""
    id_, timestamp, signature = (
        headers.get(ID_HEADER),
        headers.get(TIMESTAMP_HEADER),
        headers.get(SIGNATURE_HEADER),
    )
    if isinstance(id_, str) and isinstance(timestamp, str) and isinstance(signature, str):
        together = id_ + timestamp + signature
        if id_ and timestamp and signature and _is_plain(together):
            return id_, timestamp, signature
    return _text(headers, ID_HEADER), _text(headers, TIMESTAMP_HEADER), _text(headers, SIGNATURE_HEADER)


def _text(headers: Mapping[str, object], name: str) -> str:
    """Read a header of a stranger: AMQP lets it be anything."""
    value = headers.get(name)
    if not isinstance(value, str):
        if isinstance(value, bytes | bytearray):
            value = bytes(value).decode("latin-1")
        elif isinstance(value, int) and not isinstance(value, bool):
            # Many AMQP clients send a number as a number.
            value = str(value)
    if not isinstance(value, str) or not value:
        raise SignatureRefused(QuarantineReason.BAD_SIGNATURE, f"{name} is missing or is no text")
    if not _is_plain(value):
        raise SignatureRefused(QuarantineReason.BAD_SIGNATURE, f"{name} is too long or not printable")
    return value


def _is_plain(text: str) -> bool:
    return len(text) <= _MAX_HEADER_CHARACTERS and text.isascii() and text.isprintable()


class _Signatures:
    """What a header says; taken apart only where it is not the one signature that an HMAC key makes."""

    def __init__(self, header: str) -> None:
        self._header = header

    @cached_property
    def usable(self) -> list[tuple[Scheme, bytes]]:
        """The first signatures of schemes that we know; others beside them are passed over."""
        found: list[tuple[Scheme, bytes]] = []
        for part in self._header.split():
            name, _, encoded = part.partition(",")
            scheme = _SCHEMES.get(name)
            if scheme is not None:
                raw = _decode(encoded)
                if raw is not None and len(raw) == _SIGNATURE_BYTES[scheme]:
                    found.append((scheme, raw))
                    if len(found) == _MAX_SIGNATURES:
                        break
        return found

    def fit(self, key: VerifyingKey, signed: bytes) -> bool:
        """Tell whether one of them is this key's."""
        # Most senders have keys of both schemes and sign with one.
        if key.mark not in self._header:
            return False
        if key.pads is not None:
            digest = _hmac_sha256(key.pads, signed)
            return hmac.compare_digest(key.mark + _encode(digest), self._header) or any(
                scheme is key.scheme and hmac.compare_digest(digest, raw) for scheme, raw in self.usable
            )
        return any(
            scheme is key.scheme and _is_signed(key.material, raw, signed) for scheme, raw in self.usable
        )


def _is_signed(public_key_material: bytes, signature: bytes, signed: bytes) -> bool:
    public_key = _public_key(public_key_material)
    if public_key is None:
        return False
    try:
        public_key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


# The hashes into which the inner and the outer pad of a secret went; copied for each message.
_Pads = tuple["hashlib._Hash", "hashlib._Hash"]  # noqa: SLF001 - what typeshed calls a hash


def _hmac_sha256(pads: _Pads, message: bytes) -> bytes:
    """
    Compute HMAC-SHA256 (RFC 2104) from a secret's two pads, hashed once for all messages.

    `hmac.digest` sets up the library's whole machinery each time, which costs more than hashing an order.
    """
    inner, outer = pads
    inner, outer = inner.copy(), outer.copy()
    inner.update(message)
    outer.update(inner.digest())
    return outer.digest()


def _pads(secret: bytes) -> _Pads:
    block = (hashlib.sha256(secret).digest() if len(secret) > _BLOCK_BYTES else secret).ljust(
        _BLOCK_BYTES, b"\0"
    )
    inner, outer = (hashlib.sha256(bytes([byte ^ pad for byte in block])) for pad in (0x36, 0x5C))
    return inner, outer


@lru_cache(maxsize=16_384)
def _public_key(raw: bytes) -> Ed25519PublicKey | None:
    """Load a key once; None for bytes under which a signature would prove nothing."""
    try:
        check_public_key(raw)
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        return None


def _decode(text: str) -> bytes | None:
    """Read standard base64 in its one spelling: unused bits must be zero, or a changed byte might pass."""
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error is one
        return None
    return raw if _encode(raw) == text else None


def _encode(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).decode()
