"""
Who logs in as whom: each process, the operator and the shops, with no more rights than in production.

Only the private servers of a folder are divided like that; a server of the caller's is used as it is, by
everybody with the caller's own URL. Passwords are random, one file each, for the owner's eyes only.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from infra.local.files import secret
from infra.local.postgres import PrivatePostgres
from infra.local.rabbitmq import DEFAULT_VHOST, PrivateRabbitMQ
from infra.postgres.roles import role_name
from infra.rabbitmq.access import (
    NOTHING,
    BrokerUser,
    bank_user,
    installation_users,
    operator_user,
    shop_user,
    user_definitions,
    worker_user,
)

OPERATOR: Final = "operator"
_EXPORTER: Final = "exporter"
# The exporter only looks; everybody else has the role of their own name.
_ROLES: Final[Mapping[str, str]] = {
    **{name: name for name in ("payment", "escrow", "payout", "relay", OPERATOR)},
    _EXPORTER: "viewer",
}

# Whoever plays a shop on this machine, whichever: says what shops may say, reads what shops read.
_SHOPS: Final = replace(
    shop_user("any", {"orders", "sellers"}), name="local-shops", read=r"^events\.[a-z0-9-]+$"
)
# Looks at the broker through the management API and can change nothing.
_MONITOR: Final = BrokerUser("local-monitor", write=NOTHING, read=NOTHING, tags="monitoring")


class BrokerLogins:
    """The users of a private RabbitMQ."""

    def __init__(self, broker: PrivateRabbitMQ, folder: Path, bank_id: str) -> None:
        """Describe them; `admit` makes them."""
        self._broker = broker
        self._folder = folder
        self._bank = bank_user(bank_id)

    @property
    def operator_url(self) -> str:
        return self.url_of(operator_user())

    @property
    def shops_url(self) -> str:
        """The URL for whoever plays a shop on this machine."""
        return self.url_of(_SHOPS)

    @property
    def management_url(self) -> str | None:
        """The management API for whoever only looks."""
        return self._broker.management_url_of(_MONITOR.name, self._password(_MONITOR))

    def url_of_process(self, name: str, *, bank: bool) -> str:
        """Return the URL of a worker, or of the simulated bank."""
        if bank:
            return self.url_of(self._bank)
        if name == _EXPORTER:
            # It never connects, and has no user.
            return self._broker.url_of("no-user", "no-password")
        return self.url_of(worker_user(name))

    def url_of(self, user: BrokerUser) -> str:
        return self._broker.url_of(user.name, self._password(user))

    def admit_installation(self) -> None:
        """Make everybody's user."""
        self.admit([*installation_users(), self._bank, _SHOPS, _MONITOR])

    def admit(self, users: Collection[BrokerUser]) -> None:
        """Make users, or give those that are there their rights and password again."""
        passwords = {user.name: self._password(user) for user in users}
        self._broker.load(user_definitions(users, DEFAULT_VHOST, passwords))

    def _password(self, user: BrokerUser) -> str:
        return _password(self._folder, f"broker.{user.name}")


class DatabaseLogins:
    """The login roles of a private PostgreSQL."""

    def __init__(self, server: PrivatePostgres, folder: Path, database: str) -> None:
        """Describe them; `admit` makes them."""
        self._server = server
        self._folder = folder
        self._database = database

    def url_of(self, process: str) -> str:
        """Return the URL of a worker, the exporter or the operator."""
        login = _login(process)
        return self._server.url_of(login, self._password(process), self._database)

    def admit(self) -> None:
        """Make everybody's login, a member of the group role that `holdfast migrate` has made."""
        for process, role in _ROLES.items():
            self._server.ensure_login(_login(process), self._password(process), member_of=role_name(role))

    def _password(self, process: str) -> str:
        return _password(self._folder, f"database.{_login(process)}")


def _login(process: str) -> str:
    return f"hf_{process}"


def _password(folder: Path, name: str) -> str:
    return secret(folder / f"{name}.password", lambda: secrets.token_urlsafe(24))
