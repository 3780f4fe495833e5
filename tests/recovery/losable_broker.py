"""A broker that a disaster empties, for the recovery drill."""

import secrets
from typing import Any


class LosableBroker:
    """A vhost that a disaster empties: messages, queues and exchanges are gone, the address is the same."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._vhost = f"test-{secrets.token_hex(6)}"
        node.add_vhost(self._vhost)
        self.url: str = node.url(self._vhost)

    def is_lost(self) -> None:
        self._node.delete_vhost(self._vhost)
        self._node.add_vhost(self._vhost)

    def close(self) -> None:
        self._node.delete_vhost(self._vhost)
