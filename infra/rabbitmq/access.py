"""
The broker's own gate: one user for each process and each party outside, and what RabbitMQ lets them do.

As a definitions file that RabbitMQ imports. A worker reads its own queues and writes what its commands and
answers need; a shop writes its kinds of events to `holdfast.inbound` and reads its own queue; nobody but the
operators declares anything, and only they may write to the exchange without a name, behind which lies every
queue. A signature is still needed for everything that moves money: this gate is the one before it.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.rabbitmq import delay_lanes
from infra.rabbitmq.messages import DEAD_LETTER_EXCHANGE, dead_letter_queue
from infra.rabbitmq.topology import (
    DELIVER_EXCHANGE,
    ESCROW_DISPUTE,
    ESCROW_HOLD,
    ESCROW_RELEASE,
    EVENTS_EXCHANGE,
    INBOUND_EXCHANGE,
    ORPHANS_QUEUE,
    PAYMENT_BANK,
    PAYMENT_INTAKE,
    PAYMENT_MATCH,
    PAYOUT_BANK,
    PAYOUT_PASSWORD,
    PAYOUT_SELLER,
    PAYOUT_WITHDRAWAL,
    QUARANTINE_QUEUE,
    UNROUTED_EXCHANGE,
    WORK_QUEUES,
    shop_queue,
    topology,
)
from schemas.inbound import INBOUND

NOTHING = "^$"
EVERYTHING = ".*"
OPERATOR = "holdfast-operator"

# Which queues each worker consumes, and which of others' its commands go to.
WORKER_QUEUES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "payment": ((PAYMENT_INTAKE, PAYMENT_BANK, PAYMENT_MATCH), (ESCROW_HOLD, ESCROW_RELEASE, PAYOUT_BANK)),
    "escrow": ((ESCROW_HOLD, ESCROW_RELEASE, ESCROW_DISPUTE), (PAYOUT_BANK,)),
    "payout": ((PAYOUT_WITHDRAWAL, PAYOUT_SELLER, PAYOUT_PASSWORD, PAYOUT_BANK), (ESCROW_RELEASE,)),
    # Takes what is left over to wherever it was going, and puts what fell off its way back.
    "relay": (
        (QUARANTINE_QUEUE, ORPHANS_QUEUE, *map(dead_letter_queue, WORK_QUEUES)),
        tuple(WORK_QUEUES),
    ),
}


@dataclass(frozen=True, slots=True)
class BrokerUser:
    """One user: what it may declare, write to and read, and which routing keys it may write where."""

    name: str
    write: str
    read: str
    configure: str = NOTHING
    routing_keys: Mapping[str, str] = field(default_factory=dict)
    # What the management API lets it see, if anything.
    tags: str = ""


def worker_user(worker: str) -> BrokerUser:
    """Return the user of one of the Procfile's processes."""
    own, others = WORKER_QUEUES[worker]
    # Delayed messages carry the digits of their delay before the queue's name.
    key = rf"^([0-2]\.)*{_one_of([*own, *others])}$"
    rungs = [delay_lanes.rung_exchange(rung) for rung in range(delay_lanes.RUNGS)]
    exchanges = [DELIVER_EXCHANGE, DEAD_LETTER_EXCHANGE, EVENTS_EXCHANGE, UNROUTED_EXCHANGE]
    return BrokerUser(
        name=f"holdfast-{worker}",
        write=rf"^(holdfast\.delay\..+|{_one_of(exchanges)})$",
        read=f"^{_one_of(own)}$",
        routing_keys={
            **dict.fromkeys((DELIVER_EXCHANGE, *rungs), key),
            DEAD_LETTER_EXCHANGE: f"^{_one_of([dead_letter_queue(queue) for queue in own])}$",
        },
    )


def operator_user() -> BrokerUser:
    """Return the user of `holdfast` itself: declares, and replays messages to where they came from."""
    return BrokerUser(OPERATOR, write=EVERYTHING, read=EVERYTHING, configure=EVERYTHING)


def shop_user(shop_id: str, scopes: Collection[str]) -> BrokerUser:
    """
    Return a shop's user: writes the events of its scopes, reads its own queue.

    Raises:
        ValueError: not a shop id, or no scope.
    """
    queue, _ = shop_queue(shop_id)
    return BrokerUser(
        name=f"shop.{shop_id}",
        write=f"^{_one_of([INBOUND_EXCHANGE])}$",
        read=f"^{_one_of([queue.name])}$",
        routing_keys={INBOUND_EXCHANGE: _types_of(scopes)},
    )


def bank_user(bank_id: str) -> BrokerUser:
    """Return the user of a bank's connector: writes statements, reads nothing."""
    return BrokerUser(
        name=f"bank.{bank_id}",
        write=f"^{_one_of([INBOUND_EXCHANGE])}$",
        read=NOTHING,
        routing_keys={INBOUND_EXCHANGE: _types_of([None])},
    )


def installation_users() -> tuple[BrokerUser, ...]:
    """Return the users that every installation has."""
    return (operator_user(), *map(worker_user, WORKER_QUEUES))


def user_definitions(
    users: Collection[BrokerUser], vhost: str, passwords: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """
    Describe users as RabbitMQ imports them; one without a password can't log in until it is given one.

    Args:
        users: whom to describe.
        vhost: where they may do what they may.
        passwords: by user name; only salted hashes of them get into the result.
    """
    return {
        "users": [
            {
                "name": user.name,
                "password_hash": _password_hash(passwords[user.name]) if user.name in passwords else "",
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": user.tags,
            }
            for user in users
        ],
        "permissions": [
            {
                "user": user.name,
                "vhost": vhost,
                "configure": user.configure,
                "write": user.write,
                "read": user.read,
            }
            for user in users
        ],
        "topic_permissions": [
            {"user": user.name, "vhost": vhost, "exchange": exchange, "write": key, "read": NOTHING}
            for user in users
            for exchange, key in user.routing_keys.items()
        ],
    }


def installation_definitions(
    day_seconds: int, vhost: str, passwords: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Describe a whole installation before its first shop: vhost, users, exchanges, queues and bindings."""
    wanted = topology(day_seconds)
    return {
        "vhosts": [{"name": vhost}],
        **user_definitions(installation_users(), vhost, passwords),
        "exchanges": [
            {
                "name": exchange.name,
                "vhost": vhost,
                "type": exchange.type,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": dict(exchange.arguments),
            }
            for exchange in wanted.exchanges
        ],
        "queues": [
            {
                "name": queue.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": dict(queue.arguments),
            }
            for queue in wanted.queues
        ],
        "bindings": [
            {
                "source": binding.source,
                "vhost": vhost,
                "destination": binding.destination,
                "destination_type": "exchange" if binding.to_exchange else "queue",
                "routing_key": binding.routing_key,
                "arguments": {},
            }
            for binding in wanted.bindings
        ],
    }


def _types_of(scopes: Collection[str | None]) -> str:
    types = [name for name, model in INBOUND.items() if model.SCOPE in scopes]
    if not types:
        raise ValueError(f"no event has one of the scopes {sorted(map(str, scopes))}")
    return f"^{_one_of(types)}$"


def _one_of(names: Collection[str]) -> str:
    return f"({'|'.join(map(re.escape, sorted(set(names))))})"


def _password_hash(password: str) -> str:
    """RabbitMQ's own form: four bytes of salt before the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
