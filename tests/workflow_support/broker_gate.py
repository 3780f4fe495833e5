"""Users of RabbitMQ with the rights that the product gives them, imported as an operator does it."""

import secrets
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from infra.local.rabbitmq import PrivateRabbitMQ
from infra.rabbitmq import access
from infra.rabbitmq.access import BrokerUser


class Gate:
    """The users of one virtual host, under names of this run's own: they are the broker's, not the host's."""

    def __init__(self, broker: PrivateRabbitMQ, owner_url: str) -> None:
        self._broker = broker
        self._owner = urlsplit(owner_url)
        self.owner_url = owner_url
        self.vhost = self._owner.path.removeprefix("/")
        self._mark = secrets.token_hex(4)
        self.passwords: dict[str, str] = {}

    def name(self, user: BrokerUser) -> str:
        return f"{user.name}.{self._mark}"

    def admit(self, *users: BrokerUser) -> None:
        for user in users:
            self.passwords[user.name] = secrets.token_urlsafe(24)
        self.load(access.user_definitions(users, self.vhost, self.passwords))

    def load(self, definitions: dict[str, list[dict[str, Any]]]) -> None:
        for user in definitions.get("users", []):
            user["name"] += f".{self._mark}"
        for right in definitions.get("permissions", []) + definitions.get("topic_permissions", []):
            right["user"] += f".{self._mark}"
        self._broker.load(definitions)

    def forget(self) -> None:
        for name in self.passwords:
            user = quote(f"{name}.{self._mark}")
            httpx.delete(
                f"{self._broker.management_url}/api/users/{user}", timeout=30, trust_env=False
            ).raise_for_status()

    def url(self, user: BrokerUser) -> str:
        login = f"{quote(self.name(user))}:{self.passwords[user.name]}"
        return f"amqp://{login}@{self._owner.hostname}:{self._owner.port}/{self.vhost}"
