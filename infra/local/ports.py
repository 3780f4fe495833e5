"""Free loopback ports, remembered so that a restarted service is found where it was."""

import json
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from infra.local.errors import LocalServiceError
from infra.local.files import read_json_object, write_whole

LOOPBACK = "127.0.0.1"

# Below the range from which the kernel takes ports for outgoing connections, so that none of those
# can sit on a port between the moment it was found free and the moment its service binds it.
_FIRST_PORT = 20_000
_LAST_PORT = 32_000
_TRIES = 500


def is_free(port: int) -> bool:
    """Tell whether a service could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set this too: a port whose last connections are still winding down is free to them.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _free_port(taken: set[int]) -> int:
    for _ in range(_TRIES):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port not in taken and is_free(port):
            return port
    raise LocalServiceError(f"no free port between {_FIRST_PORT} and {_LAST_PORT} on {LOOPBACK}")


def remembered_ports(path: Path) -> dict[str, int]:
    """Return the ports of a service as they were last chosen."""
    return {name: port for name, port in read_json_object(path).items() if isinstance(port, int)}


def choose_ports(path: Path, names: Iterable[str]) -> dict[str, int]:
    """
    Return a free port for each name: the remembered one, or another where somebody took it.

    Call this only while the service that owns these ports is down.
    """
    remembered = remembered_ports(path)
    chosen: dict[str, int] = {}
    for name in names:
        port = remembered.get(name)
        if port is None or port in chosen.values() or not is_free(port):
            port = _free_port({*chosen.values(), *remembered.values()})
        chosen[name] = port
    write_whole(path, json.dumps(chosen, indent=1) + "\n")
    return chosen
