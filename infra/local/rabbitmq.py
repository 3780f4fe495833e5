"""Private RabbitMQ, one node or a cluster: own ports, name service, cookie, data and logs; loopback only."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pika
from pika.exceptions import AMQPError

from infra.local.errors import LocalServiceError
from infra.local.files import secret, write_whole
from infra.local.ports import LOOPBACK, choose_ports, remembered_ports
from infra.local.processes import find_running, kill_group, last_lines, start_background, stop_recorded

USER = "holdfast"
DEFAULT_VHOST = "holdfast"
_NODE_NAME = "holdfast@localhost"
# The system's `rabbitmq-server` on PATH is a wrapper that changes to the user rabbitmq.
_PROGRAMS = Path("/usr/lib/rabbitmq/bin")
_VHOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_POLL_SECONDS = 0.05
_IMPORT_SECONDS = 30
_WRONG_COOKIE = "partitioned"
_NOT_INSTALLED = "RabbitMQ is not installed: run `make up`, or set HOLDFAST_BROKER_URL to your server"


def find_rabbitmq_programs() -> Path | None:
    """Return the folder of RabbitMQ's own start scripts."""
    if (_PROGRAMS / "rabbitmq-server").is_file():
        return _PROGRAMS
    on_path = shutil.which("rabbitmq-server")
    return Path(on_path).resolve().parent if on_path else None


@dataclass(frozen=True, slots=True)
class Membership:
    """A node's place in a cluster; cookie, password and name service in `shared` are everybody's."""

    name: str
    everybody: tuple[str, ...]
    shared: Path


class PrivateRabbitMQ:
    """One RabbitMQ node whose whole state lies in `folder`, but for what the members of a cluster share."""

    def __init__(self, folder: Path, *, member: Membership | None = None) -> None:
        """Describe the node; nothing runs or is written before `start`."""
        self.folder = folder.resolve()
        self.log = self.folder / "server.log"
        self.name = member.name if member else _NODE_NAME
        self._member = member
        self._record = self.folder / "server.pid.json"
        self._ports = self.folder / "ports.json"
        self._shared = member.shared.resolve() if member else self.folder
        self._names = _NameService(self._shared)
        self._home = self._shared / "home"

    @property
    def is_running(self) -> bool:
        return find_running(self._record) is not None

    def url(self, vhost: str = DEFAULT_VHOST) -> str:
        """Return its owner's URL of a vhost of this node, for which the node need not run."""
        return self.url_of(USER, self._password(), vhost)

    def url_of(self, user: str, password: str, vhost: str = DEFAULT_VHOST) -> str:
        """Return a user's URL of a vhost."""
        port = remembered_ports(self._ports).get("amqp", 0)
        return f"amqp://{quote(user)}:{quote(password)}@{LOOPBACK}:{port}/{quote(vhost, safe='')}"

    @property
    def management_url(self) -> str | None:
        """Return its owner's URL of the management API; None before the first start with one."""
        return self.management_url_of(USER, self._password())

    def management_url_of(self, user: str, password: str) -> str | None:
        """Return a user's URL of the management API; None before the first start with one."""
        port = remembered_ports(self._ports).get("management")
        return f"http://{quote(user)}:{quote(password)}@{LOOPBACK}:{port}" if port else None

    def start(self) -> None:
        """Start the node without waiting for it."""
        if self.is_running:
            return
        programs = find_rabbitmq_programs()
        if programs is None:
            raise LocalServiceError(_NOT_INSTALLED)
        if self._member is None:
            self._names.stop()
        self._names.start()
        ports = choose_ports(self._ports, ["amqp", "distribution", "management"])
        self._write_configuration(ports)
        environment = self._environment(ports)
        start_background(
            [programs / "rabbitmq-server"],
            record=self._record,
            log=self.log,
            environment=environment,
            folder=self.folder,
        )

    def wait_until_ready(self, *, timeout_s: float = 90) -> None:
        """Return when the node accepts connections."""
        deadline = time.monotonic() + timeout_s
        parameters = pika.URLParameters(self.url())
        parameters.socket_timeout = parameters.blocked_connection_timeout = 5
        while True:
            try:
                pika.BlockingConnection(parameters).close()
            except (AMQPError, OSError) as error:
                if not self.is_running or time.monotonic() > deadline:
                    raise LocalServiceError(
                        f"RabbitMQ did not start, see {self.log}:\n{last_lines(self.log)}"
                    ) from error
                time.sleep(_POLL_SECONDS)
            else:
                return

    def stop(self) -> None:
        """Stop the node, its messages kept."""
        stop_recorded(self._record, signal.SIGTERM, timeout_s=40)
        if self._member is None:
            self._names.stop()

    def kill(self) -> None:
        """End the node as a power cut would: with SIGKILL, and whatever it has started with it."""
        running = find_running(self._record)
        if running is not None:
            kill_group(running)

    def partition(self) -> None:
        """
        Cut the node off from the other members, in both directions; clients still reach it.

        Erlang nodes talk only to those that know their cookie: with a wrong one for each other member, the
        connections that exist are closed and none can be made again, by either side.
        """
        self._evaluate(
            f"[begin erlang:set_cookie(N, {_WRONG_COOKIE}), erlang:disconnect_node(N) end"
            f" || N <- [{self._other_members()}]], ok."
        )

    def heal(self) -> None:
        """Let the node reach the other members again, and be reached."""
        self._evaluate(
            "[begin erlang:set_cookie(N, erlang:get_cookie()), net_kernel:connect_node(N) end"
            f" || N <- [{self._other_members()}]], ok."
        )

    def _other_members(self) -> str:
        everybody = self._member.everybody if self._member else ()
        return ", ".join(f"'{name}'" for name in everybody if name != self.name)

    def add_vhost(self, name: str) -> None:
        """Create a vhost that our user may do everything in."""
        vhost = _erlang_binary(name)
        user = _erlang_binary(USER)
        everything = '<<".*">>'
        self._evaluate(
            f"rabbit_vhost:add({vhost}, {user}), rabbit_auth_backend_internal:set_permissions("
            f"{user}, {vhost}, {everything}, {everything}, {everything}, {user}), ok."
        )

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost with all its queues and messages."""
        self._evaluate(f"rabbit_vhost:delete({_erlang_binary(name)}, {_erlang_binary(USER)}), ok.")

    def load(self, definitions: Mapping[str, Any]) -> None:
        """
        Import definitions of users, rights and objects, as an operator does.

        Raises:
            LocalServiceError: the management API does not take them.
        """
        try:
            httpx.post(
                f"{self.management_url}/api/definitions",
                json=definitions,
                timeout=_IMPORT_SECONDS,
                trust_env=False,
            ).raise_for_status()
        except httpx.HTTPError as error:
            raise LocalServiceError(
                f"RabbitMQ did not import definitions ({error}), see {self.log}"
            ) from None

    def _evaluate(self, expression: str) -> None:
        """
        Evaluate an Erlang expression that returns `ok` in the node.

        `rabbitmqctl` takes seconds for each command, because it boots a machine of its own; `erl_call`
        takes milliseconds. Both read the cookie from HOME.
        """
        environment = self._environment(remembered_ports(self._ports))
        fast = shutil.which("erl_call")
        programs = find_rabbitmq_programs()
        if fast is not None:
            command, given = [fast, "-sname", self.name, "-e"], expression + "\n"
        elif programs is not None:
            command, given = [str(programs / "rabbitmqctl"), "--quiet", "eval", expression], None
        else:
            raise LocalServiceError("RabbitMQ's programs are gone")
        done = subprocess.run(  # noqa: S603 - the command is ours, no shell is involved
            command,
            input=given,
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            cwd=self.folder,
            timeout=60,
        )
        if done.returncode != 0 or done.stdout.strip() not in {"ok", "{ok, ok}"}:
            raise LocalServiceError(f"RabbitMQ refused {expression}: {done.stdout} {done.stderr}".strip())

    def _password(self) -> str:
        return secret(self._shared / "password", lambda: secrets.token_urlsafe(24))

    def _write_configuration(self, ports: dict[str, int]) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        cookie = self._home / ".erlang.cookie"
        secret(cookie, lambda: secrets.token_hex(24))
        cookie.chmod(0o400)
        settings = {
            "listeners.tcp.1": f"{LOOPBACK}:{ports['amqp']}",
            "default_user": USER,
            "default_pass": self._password(),
            "default_vhost": DEFAULT_VHOST,
            "log.file.level": "info",
            "log.console": "false",
            # What exists is all that is asked of the management API; counting costs the node's time.
            "management.tcp.ip": LOOPBACK,
            "management.tcp.port": str(ports["management"]),
            "management_agent.disable_metrics_collector": "true",
        }
        if self._member is not None:
            settings |= {
                "cluster_formation.peer_discovery_backend": "classic_config",
                **{
                    f"cluster_formation.classic_config.nodes.{number}": name
                    for number, name in enumerate(self._member.everybody, start=1)
                },
                # What docs/running.md asks of every cluster: the smaller side stops serving, so that
                # exchanges and bindings can't come to differ; and not every queue's leader on one node.
                "cluster_partition_handling": "pause_minority",
                "queue_leader_locator": "balanced",
            }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        write_whole(self.folder / "rabbitmq.conf", text, mode=0o600)
        write_whole(self.folder / "enabled_plugins", "[rabbitmq_management].\n")

    def _environment(self, ports: dict[str, int]) -> dict[str, str]:
        """Return a node's whole environment: nothing of the caller's or of the system's gets in."""
        loopback_only = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self._home),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._names.port),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(ports["distribution"]),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "no-advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "server.pid"),
            # The start script then becomes the node instead of waiting for it beside it, so that the
            # process we recorded is the node itself; without a terminal there is no input to allow.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput +B i",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback_only,
            "RABBITMQ_CTL_ERL_ARGS": loopback_only,
        }


class RabbitMQCluster:
    """Several nodes on this machine that are one broker; a quorum queue has a replica on three of them."""

    def __init__(self, folder: Path, *, size: int = 3) -> None:
        """Describe the cluster; nothing runs or is written before `start`."""
        names = tuple(f"holdfast-{number}@localhost" for number in range(1, size + 1))
        shared = folder / "shared"
        self.nodes = tuple(
            PrivateRabbitMQ(folder / f"node-{number}", member=Membership(name, names, shared))
            for number, name in enumerate(names, start=1)
        )
        self._names = _NameService(shared.resolve())

    def start(self) -> None:
        """Start every node and return when all accept connections."""
        first, *others = self.nodes
        new = not first.folder.exists()
        first.start()
        if new:
            # The others then find somebody to join, instead of each founding a cluster of its own.
            first.wait_until_ready()
        for node in others:
            node.start()
        for node in self.nodes:
            node.wait_until_ready()

    def kill(self) -> None:
        """End every node at once, as a power cut would."""
        for node in self.nodes:
            node.kill()

    def stop(self) -> None:
        """Stop every node, its messages kept."""
        for node in self.nodes:
            node.stop()
        self._names.stop()


class _NameService:
    """Erlang's name service (epmd), by which the nodes of one folder find each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._record = folder / "names.pid.json"
        self._ports = folder / "names-port.json"

    @property
    def port(self) -> int:
        return remembered_ports(self._ports).get("names", 0)

    def start(self) -> None:
        if find_running(self._record) is not None:
            return
        program = shutil.which("epmd")
        if program is None:
            raise LocalServiceError(_NOT_INSTALLED)
        self._folder.mkdir(parents=True, exist_ok=True)
        port = choose_ports(self._ports, ["names"])["names"]
        start_background(
            [program, "-address", LOOPBACK, "-port", str(port)],
            record=self._record,
            log=self._folder / "names.log",
            environment={"PATH": os.environ.get("PATH", os.defpath)},
            folder=self._folder,
        )

    def stop(self) -> None:
        stop_recorded(self._record, timeout_s=5)


def _erlang_binary(text: str) -> str:
    if not _VHOST_NAME.fullmatch(text):
        raise ValueError(f"not a name for a vhost: {text!r}")
    return f'<<"{text}">>'
