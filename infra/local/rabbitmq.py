"""A private RabbitMQ node: own ports, name service, cookie, data and logs; loopback only."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import pika
from pika.exceptions import AMQPError

from infra.local.errors import LocalServiceError
from infra.local.files import secret, write_whole
from infra.local.ports import LOOPBACK, choose_ports, remembered_ports
from infra.local.processes import find_running, last_lines, start_background, stop_recorded

USER = "holdfast"
DEFAULT_VHOST = "holdfast"
_NODE_NAME = "holdfast@localhost"
# The system's `rabbitmq-server` on PATH is a wrapper that changes to the user rabbitmq.
_PROGRAMS = Path("/usr/lib/rabbitmq/bin")
_VHOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_POLL_SECONDS = 0.05


def find_rabbitmq_programs() -> Path | None:
    """Return the folder of RabbitMQ's own start scripts."""
    if (_PROGRAMS / "rabbitmq-server").is_file():
        return _PROGRAMS
    on_path = shutil.which("rabbitmq-server")
    return Path(on_path).resolve().parent if on_path else None


class PrivateRabbitMQ:
    """One RabbitMQ node whose whole state lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        """Describe the node; nothing runs or is written before `start`."""
        self.folder = folder.resolve()
        self.log = self.folder / "server.log"
        self._record = self.folder / "server.pid.json"
        self._names_record = self.folder / "names.pid.json"
        self._ports = self.folder / "ports.json"
        self._home = self.folder / "home"

    @property
    def is_running(self) -> bool:
        return find_running(self._record) is not None

    def url(self, vhost: str = DEFAULT_VHOST) -> str:
        """Return the URL of a vhost of this node, for which the node need not run."""
        port = remembered_ports(self._ports).get("amqp", 0)
        return f"amqp://{USER}:{self._password()}@{LOOPBACK}:{port}/{quote(vhost, safe='')}"

    @property
    def management_url(self) -> str | None:
        """Return the URL of the management API with its user; None before the first start with one."""
        port = remembered_ports(self._ports).get("management")
        return f"http://{USER}:{self._password()}@{LOOPBACK}:{port}" if port else None

    def start(self) -> None:
        """Start the node without waiting for it."""
        if self.is_running:
            return
        programs = find_rabbitmq_programs()
        name_service = shutil.which("epmd")
        if programs is None or name_service is None:
            raise LocalServiceError(
                "RabbitMQ is not installed: run `make up`, or set HOLDFAST_BROKER_URL to your server"
            )
        stop_recorded(self._names_record, timeout_s=5)
        ports = choose_ports(self._ports, ["amqp", "distribution", "names", "management"])
        self._write_configuration(ports)
        environment = self._environment(ports)
        start_background(
            [name_service, "-address", LOOPBACK, "-port", str(ports["names"])],
            record=self._names_record,
            log=self.log,
            environment=environment,
            folder=self.folder,
        )
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
        stop_recorded(self._names_record, timeout_s=5)

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
            command, given = [fast, "-sname", _NODE_NAME, "-e"], expression + "\n"
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
        return secret(self.folder / "password", lambda: secrets.token_urlsafe(24))

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
            "ERL_EPMD_PORT": str(ports["names"]),
            "RABBITMQ_NODENAME": _NODE_NAME,
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


def _erlang_binary(text: str) -> str:
    if not _VHOST_NAME.fullmatch(text):
        raise ValueError(f"not a name for a vhost: {text!r}")
    return f'<<"{text}">>'
