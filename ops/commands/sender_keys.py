"""What `holdfast shop key` and `holdfast bank key` have in common."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from infra.postgres.key_store import (
    SenderKind,
    TooManyKeys,
    add_sender_key,
    expire_sender_key,
    list_sender_keys,
    revoke_sender_key,
)
from infra.security.encryption import Vault
from infra.security.signatures import Scheme
from ops.failures import CommandFailed
from ops.output import print_json, print_table, say
from ops.store.actions import Action, record_actions


def add_key(
    connection: Connection,
    vault: Vault,
    *,
    kind: SenderKind,
    sender_id: str,
    scheme: Scheme,
    material: bytes,
    scopes: Sequence[str],
    not_before: datetime | None,
    not_after: datetime | None,
    operator: str,
    why: str,
) -> UUID:
    """
    Register a key and record who did it; the same key again is the same key.

    Raises:
        CommandFailed: the key would have no time, or the sender has too many.
    """
    try:
        key_id = add_sender_key(
            connection,
            vault,
            kind=kind,
            sender_id=sender_id,
            scheme=scheme,
            material=material,
            scopes=scopes,
            not_before=not_before,
            not_after=not_after,
        )
    except (TooManyKeys, ValueError) as error:
        raise CommandFailed(str(error)) from error
    details = {
        "key_id": key_id,
        "scheme": scheme.value,
        "scopes": sorted(scopes),
        "not_before": not_before,
        "not_after": not_after,
    }
    record_actions(connection, [Action(operator, f"{kind}_key_added", sender_id, why, details)])
    return key_id


def print_added(
    *, kind: SenderKind, sender_id: str, key_id: UUID, scheme: Scheme, scopes: Sequence[str], json: bool
) -> None:
    """Tell the new key's id, by which it can be revoked."""
    if json:
        print_json({kind: sender_id, "key_id": key_id, "scheme": scheme.value, "scopes": sorted(scopes)})
    else:
        say(f"{kind} {sender_id} has the key {key_id}")


def print_keys(keys: Sequence[dict[str, Any]], *, json: bool) -> None:
    """Show what may be shown of keys."""
    if json:
        print_json(keys)
        return
    print_table(
        ("key id", "scheme", "scopes", "active", "not before", "not after", "revoked"),
        [
            (
                key["key_id"],
                key["scheme"],
                " ".join(key["scopes"]),
                key["active"],
                key["not_before"],
                key["not_after"],
                key["revoked_at"],
            )
            for key in keys
        ],
    )


def find_keys(connection: Connection, kind: SenderKind, sender_id: str) -> list[dict[str, Any]]:
    """Read a sender's keys, oldest first."""
    return list_sender_keys(connection, kind, sender_id)


def revoke_key(
    connection: Connection, *, kind: SenderKind, sender_id: str, key_id: UUID, operator: str, why: str
) -> None:
    """
    Revoke a key from now on and record who did it.

    Raises:
        CommandFailed: the sender has no such key, or it is revoked already.
    """
    if not revoke_sender_key(connection, kind, sender_id, key_id):
        raise CommandFailed(f"{kind} {sender_id} has no key {key_id} that could be revoked")
    record_actions(connection, [Action(operator, f"{kind}_key_revoked", sender_id, why, {"key_id": key_id})])


def expire_key(
    connection: Connection,
    *,
    kind: SenderKind,
    sender_id: str,
    key_id: UUID,
    not_after: datetime,
    operator: str,
    why: str,
) -> None:
    """
    Let a key end at a time to come and record who did it.

    Raises:
        CommandFailed: the sender has no such key in use, or the time is over.
    """
    if not expire_sender_key(connection, kind, sender_id, key_id, not_after):
        raise CommandFailed(
            f"{kind} {sender_id} has no key {key_id} in use that could end then; `key revoke` ends one now"
        )
    details = {"key_id": key_id, "not_after": not_after}
    record_actions(connection, [Action(operator, f"{kind}_key_expires", sender_id, why, details)])


def unknown(kind: SenderKind, sender_id: str) -> CommandFailed:
    """Build the refusal for a sender that is not registered."""
    remedy = "holdfast shop add" if kind == "shop" else "holdfast bank key add"
    return CommandFailed(f"{kind} {sender_id} is not registered; `{remedy}` does it")
