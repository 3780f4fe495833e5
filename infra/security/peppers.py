"""
Peppers: secrets that go into every password hash and are never in the database.

A stolen database alone is then worth nothing: without the pepper no guess can be tried.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_MIN_PEPPER_BYTES: Final = 32
_MAX_VERSION_DIGITS: Final = 6


class BadPeppers(ValueError):
    """What was given is no list of peppers. The sentence never repeats one."""


@dataclass(frozen=True, slots=True)
class Peppers:
    """New hashes use the `current` version; the others stay for hashes that were made with them."""

    current: str
    secrets: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if self.current not in self.secrets:
            raise BadPeppers("the current pepper is not among the peppers")
        if any(len(secret) < _MIN_PEPPER_BYTES for secret in self.secrets.values()):
            raise BadPeppers(f"a pepper has at least {_MIN_PEPPER_BYTES} bytes")
        if any(not (version.isascii() and version.isalnum()) for version in self.secrets):
            raise BadPeppers("a pepper's version is ASCII letters and digits")


def parse_peppers(text: str) -> Peppers:
    """
    Read `version:base64`, several separated by commas; the highest version is the current one.

    A version is a whole number from 1 on, so that no order of writing decides which one is new.

    Raises:
        BadPeppers: another form, a version twice, or fewer than 32 bytes.
    """
    secrets: dict[int, bytes] = {}
    for part in text.split(","):
        version, mark, encoded = part.strip().partition(":")
        if not mark or not _is_version(version):
            raise BadPeppers("must be version:base64, versions being whole numbers from 1 on")
        if int(version) in secrets:
            raise BadPeppers(f"version {int(version)} stands twice")
        try:
            secrets[int(version)] = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise BadPeppers(f"version {int(version)} must be standard base64") from None
    return Peppers(str(max(secrets)), {str(version): secret for version, secret in secrets.items()})


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MAX_VERSION_DIGITS and int(text) >= 1
