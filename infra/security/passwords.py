"""
Withdrawal passwords at rest: argon2id, with room for a pepper from the environment.

A check costs memory and time on purpose, so only so many run at once; the others wait their turn.
"""

import hmac
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from infra.security.peppers import Peppers
from schemas.fields import MAX_PASSWORD_LENGTH, MIN_PASSWORD_LENGTH

# Normalising is linear, but there is no reason to normalise a megabyte; composing shortens at most so much.
_MAX_CHARS_BEFORE_NFC: Final = 8 * MAX_PASSWORD_LENGTH
# No hash of ours needs more; a row written by somebody else could ask for all of the machine.
_MAX_MEMORY_KIB: Final = 1_048_576
_MAX_ITERATIONS: Final = 100
_MAX_PARALLELISM: Final = 64

_ARGON2ID_PREFIX: Final = "$argon2id$"
# "$hp$<version>" stands before argon2's own "$argon2id$…" where a pepper went into the hash.
_PEPPER_PREFIX: Final = "$hp$"


class PasswordRefused(ValueError):
    """This text can't be a withdrawal password; the sentence never repeats it."""


class StoredHashUnusable(Exception):
    """A stored hash is none of ours, or needs a pepper that we do not have; nobody mistyped anything."""


class PasswordsBusy(Exception):
    """Too many checks run already; another try later can help."""


@dataclass(frozen=True, slots=True)
class PasswordCheck:
    """Whether the password was right, and whether it should be hashed anew with today's parameters."""

    ok: bool
    needs_rehash: bool


class Passwords:
    """Hashes and checks withdrawal passwords. Thread-safe."""

    def __init__(
        self,
        *,
        memory_kib: int,
        iterations: int,
        parallelism: int,
        concurrency: int = 2,
        wait_seconds: float = 30.0,
        peppers: Peppers | None = None,
    ) -> None:
        """
        Set the cost of a hash.

        Args:
            memory_kib: Memory of one check.
            iterations: Passes over that memory.
            parallelism: Argon2's lanes.
            concurrency: How many checks run at once: memory is bounded by this times `memory_kib`.
            wait_seconds: How long a check waits for its turn before `PasswordsBusy`.
            peppers: None where the installation has none; production needs one.
        """
        self._hasher = PasswordHasher(
            time_cost=iterations, memory_cost=memory_kib, parallelism=parallelism, type=Type.ID
        )
        self._turns = threading.BoundedSemaphore(concurrency)
        self._wait_seconds = wait_seconds
        self._peppers = peppers
        # Checked against where there is no seller, so that an unknown one takes the same time.
        self._nobodys_hash = self._hasher.hash("nobody has this password")

    def hash(self, password: str) -> str:
        """
        Hash a new password with today's parameters.

        Raises:
            PasswordRefused: not 8 to 128 code points after NFC, or not Unicode text.
            PasswordsBusy: no turn within the wait.
        """
        normal = normalise(password)
        with self._turn():
            if self._peppers is None:
                return self._hasher.hash(normal)
            version = self._peppers.current
            return f"{_PEPPER_PREFIX}{version}{self._hasher.hash(self._peppered(normal, version))}"

    def verify(self, stored: str | None, password: str) -> PasswordCheck:
        """
        Check a password against a stored hash; None (no such seller) is wrong after the same time.

        Raises:
            StoredHashUnusable: see there; must not count as a wrong password.
            PasswordsBusy: no turn within the wait.
        """
        version, argon2_hash = (None, self._nobodys_hash) if stored is None else self._split(stored)
        try:
            secret = normalise(password)
            possible = stored is not None
        except PasswordRefused:
            secret, possible = "not a possible password", False
        with self._turn():
            right = self._matches(argon2_hash, self._peppered(secret, version)) and possible
        current = self._peppers.current if self._peppers else None
        outdated = version != current or self._hasher.check_needs_rehash(argon2_hash)
        return PasswordCheck(ok=right, needs_rehash=right and outdated)

    def _matches(self, argon2_hash: str, secret: str | bytes) -> bool:
        try:
            return self._hasher.verify(argon2_hash, secret)
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError):
            raise StoredHashUnusable("a stored password hash is damaged") from None

    def _split(self, stored: str) -> tuple[str | None, str]:
        """Take a stored hash apart into the pepper's version and argon2's own string."""
        version: str | None = None
        argon2_hash = stored
        if stored.startswith(_PEPPER_PREFIX):
            version, mark, rest = stored.removeprefix(_PEPPER_PREFIX).partition("$")
            argon2_hash = mark + rest
            if self._peppers is None or version not in self._peppers.secrets:
                raise StoredHashUnusable("a stored password hash needs a pepper that is not configured")
        if not argon2_hash.startswith(_ARGON2ID_PREFIX):
            raise StoredHashUnusable("a stored password hash is not argon2id")
        try:
            parameters = extract_parameters(argon2_hash)
        except (InvalidHashError, ValueError):
            raise StoredHashUnusable("a stored password hash is damaged") from None
        if (
            parameters.memory_cost > _MAX_MEMORY_KIB
            or parameters.time_cost > _MAX_ITERATIONS
            or parameters.parallelism > _MAX_PARALLELISM
        ):
            raise StoredHashUnusable("a stored password hash asks for more than any hash of ours")
        return version, argon2_hash

    def _peppered(self, normal: str, version: str | None) -> str | bytes:
        if version is None or self._peppers is None:
            return normal
        return hmac.digest(self._peppers.secrets[version], normal.encode(), "sha256")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(timeout=self._wait_seconds):
            raise PasswordsBusy(f"no turn to check a password within {self._wait_seconds:g} s")
        try:
            yield
        finally:
            self._turns.release()


def normalise(password: str) -> str:
    """
    Bring a password into the one form that is compared.

    Raises:
        PasswordRefused: not 8 to 128 code points after NFC, or not Unicode text.
    """
    if len(password) > _MAX_CHARS_BEFORE_NFC:
        raise PasswordRefused(f"a password has at most {MAX_PASSWORD_LENGTH} characters")
    try:
        password.encode()
    except UnicodeEncodeError:
        raise PasswordRefused("a password is Unicode text, without lone surrogates") from None
    normal = unicodedata.normalize("NFC", password)
    if not MIN_PASSWORD_LENGTH <= len(normal) <= MAX_PASSWORD_LENGTH:
        raise PasswordRefused(f"a password has {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters")
    return normal
