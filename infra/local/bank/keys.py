"""The Ed25519 key with which the bank signs its statement lines."""

import base64
import binascii
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from infra.local.errors import LocalServiceError
from infra.local.files import secret


def make_signing_key(path: Path) -> str:
    """Make the key file unless it is there; return the public key as `holdfast bank key add` takes it."""
    secret(path, _new_seed)
    return public_key(read_signing_key(path))


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """
    Read a key file: one line, the raw 32-byte seed in standard base64.

    Raises:
        LocalServiceError: there is no such file, or it holds something else.
    """
    try:
        seed = base64.b64decode(path.read_text(encoding="ascii").strip(), validate=True)
        return Ed25519PrivateKey.from_private_bytes(seed)
    except OSError as error:
        raise LocalServiceError(f"the bank's key file can't be read: {error}") from error
    except (binascii.Error, ValueError):
        # `from None`: the library's error may repeat what the file holds.
        raise LocalServiceError(f"{path} holds no 32-byte Ed25519 seed in base64") from None


def public_key(key: Ed25519PrivateKey) -> str:
    """Return the raw public key in standard base64."""
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _new_seed() -> str:
    key = Ed25519PrivateKey.generate()
    return base64.b64encode(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())).decode()
