"""
Encryption at rest: AES-256-GCM under a key from the environment.

What the vault returns names the key that it needs and is bound to the row that it belongs to, so a
ciphertext copied to another row does not open there, and keys can be changed one row at a time.
"""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.settings import Settings

_VERSION: Final = b"\x01"
_KEY_BYTES: Final = 32
_KEY_ID_BYTES: Final = 8
# Random nonces: one key is good for 2^32 encryptions (NIST SP 800-38D), each of them a key or a
# destination that somebody registered.
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_PREFIX_BYTES: Final = len(_VERSION) + _KEY_ID_BYTES
_HEAD_BYTES: Final = _PREFIX_BYTES + _NONCE_BYTES


class BadEncryptionKey(ValueError):
    """What was given is no key for the vault. The sentence never repeats it."""


class DecryptionFailed(Exception):
    """
    A stored ciphertext does not open.

    It was changed, moved to another row, or its key is not among those in the environment.
    """


class Vault:
    """
    Encrypts with the current key; decrypts with that and the old ones.

    The envelope is: version (1 byte), key id (8), nonce (12), ciphertext with tag. Version and key id
    are authenticated together with the context.
    """

    def __init__(self, current_key: str, old_keys: Sequence[str] = ()) -> None:
        """
        Load the keys.

        Args:
            current_key: 32 bytes in standard base64; encrypts everything new.
            old_keys: The same form; they only decrypt, while rows are moved to the current key.

        Raises:
            BadEncryptionKey: one of them has another form.
        """
        current = _decode_key(current_key)
        self._current_id = _key_id(current)
        self._ciphers = {_key_id(key): AESGCM(key) for key in map(_decode_key, old_keys)}
        self._ciphers[self._current_id] = AESGCM(current)

    def encrypt(self, plaintext: bytes, context: str) -> bytes:
        """Encrypt for the row that `context` names; the same context must be given to decrypt."""
        prefix = _VERSION + self._current_id
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._current_id]
        return prefix + nonce + cipher.encrypt(nonce, plaintext, _associated_data(prefix, context))

    def decrypt(self, envelope: bytes, context: str) -> bytes:
        """
        Decrypt what was encrypted for the row that `context` names.

        Raises:
            DecryptionFailed: see there.
        """
        envelope = bytes(envelope)
        if len(envelope) < _HEAD_BYTES + _TAG_BYTES or not envelope.startswith(_VERSION):
            raise DecryptionFailed("not an envelope of this vault")
        prefix, nonce = envelope[:_PREFIX_BYTES], envelope[_PREFIX_BYTES:_HEAD_BYTES]
        cipher = self._ciphers.get(prefix[len(_VERSION) :])
        if cipher is None:
            raise DecryptionFailed(
                "encrypted under a key that is neither in HOLDFAST_ENCRYPTION_KEY"
                " nor in HOLDFAST_OLD_ENCRYPTION_KEYS"
            )
        try:
            return cipher.decrypt(nonce, envelope[_HEAD_BYTES:], _associated_data(prefix, context))
        except InvalidTag:
            raise DecryptionFailed("changed, or moved from the row that it was encrypted for") from None

    @property
    def current_prefix(self) -> bytes:
        """How every envelope under the current key begins; what begins otherwise is to be encrypted anew."""
        return _VERSION + self._current_id

    def needs_reencryption(self, envelope: bytes) -> bool:
        """Tell whether this was not encrypted under the current key."""
        return bytes(envelope)[:_PREFIX_BYTES] != self.current_prefix


def open_vault(settings: Settings) -> Vault:
    """Build the vault of this process's environment."""
    return Vault(
        settings.encryption_key.get_secret_value(),
        [key.get_secret_value() for key in settings.listed_old_encryption_keys],
    )


def _associated_data(prefix: bytes, context: str) -> bytes:
    if not context:
        raise ValueError("a ciphertext without a context could be moved anywhere")
    return prefix + context.encode()


def _decode_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadEncryptionKey("an encryption key must be standard base64") from None
    if len(key) != _KEY_BYTES:
        raise BadEncryptionKey(f"an encryption key has {_KEY_BYTES} bytes, this has {len(key)}")
    return key


def _key_id(key: bytes) -> bytes:
    """Name a key without telling anything about it."""
    return hmac.digest(key, b"holdfast vault key id", hashlib.sha256)[:_KEY_ID_BYTES]
