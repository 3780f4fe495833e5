"""
What plain AMQP cannot see of a broker: its bindings, what else is in the vhost, policies, feature flags.

Read from the HTTP API of RabbitMQ's management plugin. Nothing is ever changed through it, so a user with
the tag `monitoring` is enough for all but feature flags, which need `administrator`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import httpx

_TIMEOUT_SECONDS = 10.0
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class ManagementUnavailable(Exception):
    """The management API does not answer, or not as it should; the sentence says what to do."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """
    All that one vhost holds, as the API names it.

    `policies` and `feature_flags` are None where the user may not read them.
    """

    exchanges: Sequence[dict[str, Any]]
    queues: Sequence[dict[str, Any]]
    bindings: Sequence[dict[str, Any]]
    policies: Sequence[dict[str, Any]] | None
    feature_flags: Sequence[dict[str, Any]] | None


class ManagementApi:
    """The management API of one broker, for one vhost."""

    def __init__(self, management_url: str, broker_url: str) -> None:
        """
        Describe the API; nothing is asked yet.

        Args:
            management_url: `http://user:password@host:15672` or `https://…`.
            broker_url: the AMQP URL that names the vhost.
        """
        parts = urlsplit(management_url)
        # The user and password go into a header; what is left can stand in an error.
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self.place = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        self._client = httpx.Client(
            base_url=f"{parts.scheme}://{self.place}{parts.path.rstrip('/')}",
            auth=(unquote(parts.username or ""), unquote(parts.password or "")),
            timeout=_TIMEOUT_SECONDS,
            # A proxy of the environment would get to see the password.
            trust_env=False,
        )
        # As pika reads it: no path at all, and a bare slash, both name the vhost `/`.
        self._vhost = quote(unquote(urlsplit(broker_url).path[1:]) or "/", safe="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self) -> Holdings:
        """
        Read everything that the vhost holds.

        Raises:
            ManagementUnavailable: it can't be reached, refuses the user, or is no management API.
        """
        return Holdings(
            exchanges=self._listed("exchanges"),
            queues=self._listed("queues"),
            bindings=self._listed("bindings"),
            policies=self._policies(),
            feature_flags=self._get_if_allowed("/api/feature-flags"),
        )

    def _listed(self, what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get(f"/api/{what}/{self._vhost}")
        return found

    def _policies(self) -> list[dict[str, Any]] | None:
        of_users = self._get_if_allowed(f"/api/policies/{self._vhost}")
        of_operators = self._get_if_allowed(f"/api/operator-policies/{self._vhost}")
        if of_users is None or of_operators is None:
            return None
        return [*of_users, *of_operators]

    def _get_if_allowed(self, path: str) -> list[dict[str, Any]] | None:
        answer = self._ask(path)
        if answer.status_code in _REFUSED:
            return None
        found: list[dict[str, Any]] = self._content(answer)
        return found

    def _get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        answer = self._ask(path)
        if answer.status_code in _REFUSED:
            raise ManagementUnavailable(
                f"the management API at {self.place} refuses the user of HOLDFAST_BROKER_MANAGEMENT_URL:"
                " mend the password, or give it the tag `monitoring` and the vhost"
            )
        return self._content(answer)

    def _ask(self, path: str) -> httpx.Response:
        try:
            return self._client.get(path)
        except httpx.HTTPError as error:
            raise ManagementUnavailable(
                f"the management API at {self.place} can't be reached ({error}): enable the plugin"
                " rabbitmq_management, or mend HOLDFAST_BROKER_MANAGEMENT_URL"
            ) from error

    def _content(self, answer: httpx.Response) -> Any:  # noqa: ANN401 - JSON
        try:
            return answer.raise_for_status().json()
        except (httpx.HTTPStatusError, ValueError) as error:
            raise ManagementUnavailable(
                f"{self.place} does not answer as a management API ({answer.status_code}):"
                " mend HOLDFAST_BROKER_MANAGEMENT_URL"
            ) from error
