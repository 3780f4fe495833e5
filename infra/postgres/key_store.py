"""
Keys in the database: those of the shops and banks that write to us, and our own.

Whether a key is active is judged by the database's clock. Workers keep what they read for half a second, a
second at most, so a revocation takes effect everywhere within that time. Names that are not registered are
asked for a batch at a time, so that a flood of forgeries under invented names costs no flood of queries;
and what is kept never has the last word on a signature that does not fit.
"""

import hmac
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from infra.postgres.arrays import text_array
from infra.postgres.bulk import insert_rows
from infra.postgres.tables import holdfast_keys, sender_keys
from infra.security.encryption import Vault
from infra.security.own_keys import KeyUse, OwnKey, generate_own_key
from infra.security.sealed import Opener
from infra.security.signatures import Scheme, Signer, VerifyingKey
from ledger.ids import new_id

SenderKind = Literal["shop", "bank"]

_MAX_CACHED_SENDERS = 10_000
# It takes longer to judge a batch full of forgeries, so under a flood hardly anybody waits for it.
FRESH_SECONDS = 0.02
# Every forged message is tried with each of them. Two are enough to rotate, a few more for several systems.
MAX_USABLE_KEYS = 8
_SHOP_SCOPES = frozenset({"orders", "sellers"})
# Any number; the same one for everybody who makes keys of ours.
_OWN_KEYS_LOCK = 4_417_093_265

ValueT = TypeVar("ValueT")


class TooManyKeys(Exception):
    """A sender has as many keys as may be in use at a time."""


class NoOwnKey(Exception):
    """The database holds no key pair of ours that is still good."""


@dataclass(frozen=True, slots=True)
class SenderRecord:
    """A registered sender, its state, and the keys that are active now."""

    active: bool
    keys: tuple[VerifyingKey, ...]


class _Kept(Generic[ValueT]):
    """One value, built again when it is too old."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._value: tuple[float, ValueT] | None = None

    def get(self, build: Callable[[], ValueT]) -> ValueT:
        if self._value is None or self._value[0] <= time.monotonic():
            self._value = (time.monotonic() + self._seconds, build())
        return self._value[1]


class KeyStore:
    """
    Reads keys through a short-lived cache; safe for several threads.

    Args:
        cache_seconds: how long a worker may go on with a key that was revoked.
    """

    def __init__(self, engine: Engine, vault: Vault, *, cache_seconds: float) -> None:
        self._engine = engine
        self._vault = vault
        self._cache_seconds = cache_seconds
        self._lock = threading.Lock()
        # When the database was asked, and what it said.
        self._senders: OrderedDict[tuple[str, str], tuple[float, SenderRecord]] = OrderedDict()
        self._asking_anew = threading.Lock()
        self._ask_anew_at = 0.0
        self._signer: _Kept[Signer] = _Kept(cache_seconds)
        self._opener: _Kept[Opener] = _Kept(cache_seconds)

    def sender(self, kind: str, sender_id: str) -> SenderRecord | None:
        """Return a shop or bank with its active keys; None if it is not registered."""
        return self.senders([(kind, sender_id)]).get((kind, sender_id))

    def senders(self, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], SenderRecord]:
        """
        Return those of these senders that are registered, by kind and id, with their active keys.

        That a name is unknown is never remembered: it is asked for anew in each call, all names of a batch
        with one query. So a sender is known from the moment that it is registered, whatever was asked before,
        and a forger who invents names costs a query a batch and no memory.
        """
        found, missing = self._kept(names, since=time.monotonic() - self._cache_seconds)
        return found | self._read(missing) if missing else found

    def senders_since(
        self, names: Iterable[tuple[str, str]], moment: float
    ) -> dict[tuple[str, str], SenderRecord]:
        """
        Return the same as the database had them at a moment of this process's monotonic clock, or later.

        For a last word: a key that was registered before a message was sent must be known when the message
        is refused for good. What others have asked since serves as well. Otherwise it asks at most
        once in `FRESH_SECONDS`, waiting for its turn, so a flood of forgeries can't make a flood of queries.
        """
        with self._asking_anew:
            found, missing = self._kept(names, since=moment)
            if not missing:
                return found
            if (wait := self._ask_anew_at - time.monotonic()) > 0:
                time.sleep(wait)
            self._ask_anew_at = time.monotonic() + FRESH_SECONDS
            return found | self._read(missing)

    def _kept(
        self, names: Iterable[tuple[str, str]], *, since: float
    ) -> tuple[dict[tuple[str, str], SenderRecord], list[tuple[str, str]]]:
        """Return what is kept of these and was asked for after a moment, and the names of the others."""
        wanted = set(names)
        with self._lock:
            kept = {name: self._senders[name] for name in wanted & self._senders.keys()}
        found = {name: record for name, (asked_at, record) in kept.items() if asked_at > since}
        return found, sorted(wanted - found.keys())

    def _read(self, missing: Sequence[tuple[str, str]]) -> dict[tuple[str, str], SenderRecord]:
        # Before the question: a revocation that the answer just missed counts against the time kept.
        asked_at = time.monotonic()
        with self._engine.connect() as connection:
            records = find_senders(connection, self._vault, missing)
        with self._lock:
            for name in missing:
                self._senders.pop(name, None)
            self._senders |= {name: (asked_at, record) for name, record in records.items()}
            while len(self._senders) > _MAX_CACHED_SENDERS:
                self._senders.popitem(last=False)
        return records

    def signer(self) -> Signer:
        """Return what signs our events now, by every key of ours that is still good."""
        return self._signer.get(
            lambda: Signer.from_jwks([key.private_jwk for key in self._own_keys(KeyUse.SIGN)])
        )

    def opener(self) -> Opener:
        """Return what opens sealed content, by any of our keys that is still good."""
        return self._opener.get(lambda: Opener([key.private_jwk for key in self._own_keys(KeyUse.SEAL)]))

    def _own_keys(self, use: KeyUse) -> list[OwnKey]:
        with self._engine.connect() as connection:
            keys = find_own_keys(connection, self._vault, use)
        if not keys:
            raise NoOwnKey(f"Holdfast has no key for '{use.value}': run `holdfast migrate`")
        return keys


def find_senders(
    connection: Connection, vault: Vault, names: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], SenderRecord]:
    """Read those of these senders, kind and id, that are registered, and their keys active by this clock."""
    rows = connection.execute(
        text("""
            SELECT kind, id, coalesce(s.state, 'active') = 'active' AS active,
                   key_id, scheme, public_key, secret_encrypted, k.scopes
            FROM unnest(CAST(:kinds AS text[]), CAST(:ids AS text[])) AS given(kind, id)
            LEFT JOIN shops AS s ON kind = 'shop' AND s.shop_id = id
            LEFT JOIN banks AS b ON kind = 'bank' AND b.bank_id = id
            LEFT JOIN sender_keys AS k
                ON sender_kind = kind AND sender_id = id AND revoked_at IS NULL
               AND not_before <= clock_timestamp()
               AND (not_after IS NULL OR clock_timestamp() < not_after)
            WHERE s.shop_id IS NOT NULL OR b.bank_id IS NOT NULL
            ORDER BY kind, id, k.created_at DESC
        """),
        {
            "kinds": text_array([kind for kind, _ in names]),
            "ids": text_array([sender_id for _, sender_id in names]),
        },
    )
    return {
        name: SenderRecord(
            bool(of_sender[0].active),
            tuple(_verifying_key(row, vault) for row in of_sender if row.key_id is not None),
        )
        for name, of_sender in (
            (name, list(group)) for name, group in groupby(rows, key=lambda row: (row.kind, row.id))
        )
    }


def _verifying_key(row: Any, vault: Vault) -> VerifyingKey:  # noqa: ANN401 - a result row
    return VerifyingKey(
        str(row.key_id),
        Scheme(row.scheme),
        frozenset(row.scopes),
        bytes(row.public_key)
        if row.public_key is not None
        else vault.decrypt(bytes(row.secret_encrypted), secret_context(row.key_id)),
    )


def add_sender_key(
    connection: Connection,
    vault: Vault,
    *,
    kind: SenderKind,
    sender_id: str,
    scheme: Scheme,
    material: bytes,
    scopes: Sequence[str],
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> UUID:
    """
    Register a key; an HMAC secret is stored encrypted. The same key with the same scopes is the same key.

    Args:
        connection: the caller's transaction.
        vault: encrypts a secret.
        kind: shop or bank.
        sender_id: whose key it is.
        scheme: how it signs.
        material: the raw public key or secret.
        scopes: what it is good for.
        not_before: from when on it is good; from now on where none is given.
        not_after: until when, excluded; for ever where none is given.

    Raises:
        ValueError: a scope that this kind of sender can't have, or times that leave the key no time.
        TooManyKeys: every forged message is tried with every active key, so their number is bounded.
    """
    if not set(scopes) <= (_SHOP_SCOPES if kind == "shop" else frozenset()):
        raise ValueError("a shop's key may have the scopes orders and sellers, a bank's key has none")
    # One at a time for a sender: otherwise two commands with one key would both find it new, and
    # revoking one of the two rows would leave the key good.
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:sender, 0))"), {"sender": f"{kind}/{sender_id}"}
    )
    known = _find_same_key(
        connection, vault, kind=kind, sender_id=sender_id, scheme=scheme, material=material, scopes=scopes
    )
    if known is not None:
        return known
    now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    if not_after is not None and not_after <= max(not_before or now, now):
        raise ValueError("the key would end before it begins")
    if _count_usable_keys(connection, kind, sender_id) >= MAX_USABLE_KEYS:
        raise TooManyKeys(f"{kind} {sender_id} has {MAX_USABLE_KEYS} keys in use: revoke one first")
    key_id = new_id()
    insert_rows(
        connection,
        sender_keys,
        [
            {
                "key_id": key_id,
                "sender_kind": kind,
                "sender_id": sender_id,
                "scheme": scheme.value,
                "public_key": material if scheme is Scheme.ED25519 else None,
                "secret_encrypted": None
                if scheme is Scheme.ED25519
                else vault.encrypt(material, secret_context(key_id)),
                "scopes": "{" + ",".join(sorted(scopes)) + "}",
                "not_before": not_before or now,
                "not_after": not_after,
            }
        ],
    )
    return key_id


def _find_same_key(
    connection: Connection,
    vault: Vault,
    *,
    kind: SenderKind,
    sender_id: str,
    scheme: Scheme,
    material: bytes,
    scopes: Sequence[str],
) -> UUID | None:
    """Look for this key among those not revoked. Secrets are encrypted, so they are compared opened."""
    rows = connection.execute(
        text("""
            SELECT key_id, public_key, secret_encrypted FROM sender_keys
            WHERE sender_kind = :kind AND sender_id = :id AND scheme = :scheme AND revoked_at IS NULL
              AND (not_after IS NULL OR clock_timestamp() < not_after)
              AND scopes = CAST(:scopes AS text[])
        """),
        {"kind": kind, "id": sender_id, "scheme": scheme.value, "scopes": sorted(scopes)},
    )
    for row in rows:
        stored = (
            bytes(row.public_key)
            if row.public_key is not None
            else vault.decrypt(bytes(row.secret_encrypted), secret_context(row.key_id))
        )
        if hmac.compare_digest(stored, material):
            return UUID(str(row.key_id))
    return None


def _count_usable_keys(connection: Connection, kind: SenderKind, sender_id: str) -> int:
    return int(
        connection.execute(
            text("""
                SELECT count(*) FROM sender_keys
                WHERE sender_kind = :kind AND sender_id = :id AND revoked_at IS NULL
                  AND (not_after IS NULL OR clock_timestamp() < not_after)
            """),
            {"kind": kind, "id": sender_id},
        ).scalar_one()
    )


def expire_sender_key(
    connection: Connection, kind: SenderKind, sender_id: str, key_id: UUID, not_after: datetime
) -> bool:
    """Let a key end at a time to come; False if the sender has no such key that is in use."""
    return (
        connection.execute(
            text("""
                UPDATE sender_keys SET not_after = :not_after
                WHERE key_id = :key AND sender_kind = :kind AND sender_id = :id AND revoked_at IS NULL
                  AND (not_after IS NULL OR clock_timestamp() < not_after)
                  AND greatest(not_before, clock_timestamp()) < :not_after
            """),
            {"key": key_id, "kind": kind, "id": sender_id, "not_after": not_after},
        ).rowcount
        == 1
    )


def list_sender_keys(connection: Connection, kind: SenderKind, sender_id: str) -> list[dict[str, Any]]:
    """Return what may be shown of a sender's keys; never a secret."""
    return [
        dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
        for row in connection.execute(
            text("""
                SELECT key_id, scheme, scopes, created_at, not_before, not_after, revoked_at,
                       revoked_at IS NULL AND not_before <= clock_timestamp()
                           AND (not_after IS NULL OR clock_timestamp() < not_after) AS active
                FROM sender_keys WHERE sender_kind = :kind AND sender_id = :id ORDER BY created_at
            """),
            {"kind": kind, "id": sender_id},
        )
    ]


def revoke_sender_key(connection: Connection, kind: SenderKind, sender_id: str, key_id: UUID) -> bool:
    """Revoke a key from now on; False if the sender has no such key that is not revoked yet."""
    return (
        connection.execute(
            text("""
                UPDATE sender_keys SET revoked_at = clock_timestamp()
                WHERE key_id = :key AND sender_kind = :kind AND sender_id = :id AND revoked_at IS NULL
            """),
            {"key": key_id, "kind": kind, "id": sender_id},
        ).rowcount
        == 1
    )


def find_own_keys(connection: Connection, vault: Vault, use: KeyUse) -> list[OwnKey]:
    """Return our key pairs of one use that are still good, newest first."""
    return [
        OwnKey.from_bytes(vault.decrypt(bytes(row.private_encrypted), own_context(row.kid)))
        for row in connection.execute(
            text("""
                SELECT kid, private_encrypted FROM holdfast_keys
                WHERE use = :use AND (not_after IS NULL OR clock_timestamp() < not_after)
                ORDER BY created_at DESC
            """),
            {"use": use.value},
        )
    ]


def find_own_public_keys(connection: Connection) -> dict[str, Any]:
    """Return the JWK Set that shops verify our events with and seal their secrets to."""
    rows = connection.execute(
        text("""
            SELECT public_jwk FROM holdfast_keys
            WHERE not_after IS NULL OR clock_timestamp() < not_after ORDER BY use, created_at DESC
        """)
    )
    return {"keys": [row.public_jwk for row in rows]}


def find_all_public_signing_keys(connection: Connection) -> dict[str, dict[str, str]]:
    """Return every key that ever signed for us, by `kid`, also those that have ended: signatures stay."""
    rows = connection.execute(text("SELECT kid, public_jwk FROM holdfast_keys WHERE use = 'sig'"))
    return {row.kid: row.public_jwk for row in rows}


def list_own_keys(connection: Connection) -> list[dict[str, Any]]:
    """Return what may be shown of all key pairs that we ever had, newest first."""
    return [
        dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
        for row in connection.execute(
            text("""
                SELECT use, kid, created_at, not_after,
                       not_after IS NULL OR clock_timestamp() < not_after AS good
                FROM holdfast_keys ORDER BY use, created_at DESC
            """)
        )
    ]


def ensure_own_keys(connection: Connection, vault: Vault) -> None:
    """Make our first keys if there are none; the second of two callers finds those of the first."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _OWN_KEYS_LOCK})
    for use in KeyUse:
        if not find_own_keys(connection, vault, use):
            add_own_key(connection, vault, generate_own_key(use))


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new key pair of ours, and until when those that it replaces are good."""

    new_kid: str
    old_kids: tuple[str, ...]
    old_good_until: datetime


def rotate_own_key(connection: Connection, vault: Vault, use: KeyUse, *, overlap_seconds: int) -> Rotation:
    """
    Make a new key pair of ours and let the others of its use expire, by the database's clock.

    None of them becomes good for longer than it was. Two rotations at once wait for each other.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _OWN_KEYS_LOCK})
    rows = connection.execute(
        text("""
            UPDATE holdfast_keys
            SET not_after = least(not_after, clock_timestamp() + make_interval(secs => :overlap))
            WHERE use = :use AND (not_after IS NULL OR clock_timestamp() < not_after)
            RETURNING kid
        """),
        {"use": use.value, "overlap": overlap_seconds},
    )
    old_kids = tuple(sorted(row.kid for row in rows))
    pair = generate_own_key(use)
    add_own_key(connection, vault, pair)
    until: datetime = connection.execute(
        text("SELECT clock_timestamp() + make_interval(secs => :overlap)"), {"overlap": overlap_seconds}
    ).scalar_one()
    return Rotation(pair.kid, old_kids, until)


def add_own_key(connection: Connection, vault: Vault, pair: OwnKey) -> None:
    """Store a key pair of ours, the private part encrypted; the newest of its use is the current one."""
    insert_rows(
        connection,
        holdfast_keys,
        [
            {
                "kid": pair.kid,
                "use": pair.use.value,
                "public_jwk": json.dumps(pair.public_jwk),
                "private_encrypted": vault.encrypt(pair.to_bytes(), own_context(pair.kid)),
            }
        ],
    )


def secret_context(key_id: UUID) -> str:
    """Bind an encrypted HMAC secret to its row."""
    return f"sender key {key_id}"


def own_context(kid: str) -> str:
    """Bind an encrypted private key of ours to its row."""
    return f"holdfast key {kid}"
