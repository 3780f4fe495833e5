"""A private PostgreSQL: own data folder, loopback port and password; nothing shared with the system's."""

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from infra.local.errors import LocalServiceError
from infra.local.files import secret
from infra.local.ports import LOOPBACK, choose_ports, remembered_ports
from infra.local.processes import (
    children_of,
    find_running,
    kill_group,
    last_lines,
    start_background,
    stop_recorded,
)

SUPERUSER = "holdfast"
_OLDEST_VERSION = 15
_INSTALLED = Path("/usr/lib/postgresql")
_POLL_SECONDS = 0.02

# As root PostgreSQL must run as somebody else, who can't look into a checkout under /root. Lending the
# server the right to pass through folders leaves every permission outside its data folder as it is.
# Which of the two exists depends on the container; the weaker one is tried first.
_WAYS_THROUGH = ("dac_read_search", "dac_override")


def find_postgres_programs() -> Path | None:
    """Return the folder of the newest installed PostgreSQL's programs."""
    versions = [
        (int(found[1]), entry / "bin")
        for entry in (_INSTALLED.iterdir() if _INSTALLED.is_dir() else ())
        if (found := re.fullmatch(r"(\d+)", entry.name)) and (entry / "bin" / "initdb").is_file()
    ]
    if versions and max(versions)[0] >= _OLDEST_VERSION:
        return max(versions)[1]
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


class PrivatePostgres:
    """One PostgreSQL server whose whole state lies in `folder`."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        """Describe the server, with settings of the caller's; nothing runs or is written before `start`."""
        self.folder = folder.resolve()
        self.settings = dict(settings or {})
        self.log = self.folder / "server.log"
        self._data = self.folder / "data"
        self._record = self.folder / "server.pid.json"
        self._ports = self.folder / "ports.json"
        self._password_file = self.folder / "password"

    @property
    def is_running(self) -> bool:
        return find_running(self._record) is not None

    def url(self, database: str) -> str:
        """Return the owner's URL of a database of this server, for which the server need not run."""
        password = secret(self._password_file, lambda: secrets.token_urlsafe(24))
        return self.url_of(SUPERUSER, password, database)

    def url_of(self, login: str, password: str, database: str) -> str:
        """Return a login's URL of a database."""
        port = remembered_ports(self._ports).get("server", 0)
        return f"postgresql://{login}:{password}@{LOOPBACK}:{port}/{database}"

    def start(self) -> None:
        """Start the server without waiting for it; a new data folder is set up first."""
        if self.is_running:
            return
        programs = find_postgres_programs()
        if programs is None:
            raise LocalServiceError(
                "PostgreSQL is not installed: run `make up`, or set HOLDFAST_DATABASE_URL to your server"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        port = choose_ports(self._ports, ["server"])["server"]
        prefix = self._as_server_user()
        self._set_up_data_folder(programs, prefix)
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "300",
            "shared_buffers": "256MB",
            "max_wal_size": "4GB",
            "fsync": "on",
            "synchronous_commit": "on",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %q%u@%d ",
            **self.settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        start_background(
            [*prefix, programs / "postgres", "-D", self._data, *options],
            record=self._record,
            log=self.log,
            environment=_server_environment(),
            folder=Path("/"),
        )

    def wait_until_ready(self, *, timeout_s: float = 60) -> None:
        """Return when the server answers queries."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if not self.is_running or time.monotonic() > deadline:
                    raise LocalServiceError(
                        f"PostgreSQL did not start, see {self.log}:\n{last_lines(self.log)}"
                    ) from error
                time.sleep(_POLL_SECONDS)
            else:
                return

    def stop(self) -> None:
        """Stop the server, its data kept."""
        # SIGINT is PostgreSQL's fast shutdown: it ends sessions instead of waiting for them.
        stop_recorded(self._record, signal.SIGINT, timeout_s=30)

    def kill(self) -> None:
        """End the server and all its sessions with SIGKILL, as a power cut would."""
        running = find_running(self._record)
        if running is not None:
            # Its sessions lead groups of their own; one left alive keeps the next start from the data.
            sessions = children_of(running)
            kill_group(running)
            for session in sessions:
                kill_group(session)

    def create_database(self, name: str, *, template: str = "template0") -> None:
        """Create a database as a copy of another that nobody is connected to."""
        # Files are copied as files: through the log, as is the default, gigabytes would be written twice.
        strategy = sql.SQL("" if template == "template0" else " STRATEGY file_copy")
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}{}").format(
                sql.Identifier(name), sql.Identifier(template), strategy
            )
        )

    def ensure_database(self, name: str) -> None:
        """Create a database unless it is there."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone()
        if found is None:
            self.create_database(name)

    def ensure_login(self, login: str, password: str, *, member_of: str) -> None:
        """Create a login unless it is there; give it its password, and the rights of one group role."""
        name = sql.Identifier(login)
        with psycopg.connect(self.url("postgres")) as connection:
            found = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [login]).fetchone()
            if found is None:
                connection.execute(sql.SQL("CREATE ROLE {}").format(name))
            connection.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, password))
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(member_of), name))

    def drop_database(self, name: str) -> None:
        """Drop a database; whoever is still connected to it is thrown out."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _set_up_data_folder(self, programs: Path, prefix: list[str]) -> None:
        if (self._data / "PG_VERSION").is_file():
            return
        # What an interrupted set-up left behind would make initdb refuse.
        shutil.rmtree(self._data, ignore_errors=True)
        self.url("postgres")  # makes the password
        self._data.mkdir(mode=0o700)
        password = self.folder / "password.once"
        shutil.copyfile(self._password_file, password)
        password.chmod(0o600)
        for path in (self._data, password):
            self._give_to_server(path)
        try:
            done = subprocess.run(  # noqa: S603 - the command is ours, no shell is involved
                [
                    *prefix,
                    str(programs / "initdb"),
                    f"--pgdata={self._data}",
                    f"--username={SUPERUSER}",
                    f"--pwfile={password}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    # Text compares by its bytes: the same order everywhere, and the cheapest.
                    "--locale=C",
                    "--no-instructions",
                ],
                check=False,
                capture_output=True,
                text=True,
                env=_server_environment(),
                cwd="/",
            )
        finally:
            password.unlink(missing_ok=True)
        if done.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise LocalServiceError(f"PostgreSQL could not be set up: {done.stderr.strip()[-2000:]}")

    def _give_to_server(self, path: Path) -> None:
        """As root the server is another user, who must own what it reads and writes."""
        if os.geteuid() == 0:
            owner = _server_user()
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def _as_server_user(self) -> list[str]:
        """Return what to put before a command so that PostgreSQL accepts to run; as a user: nothing."""
        if os.geteuid() != 0:
            return []
        owner = _server_user()
        switch = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        lent = [[f"--inh-caps=+{way}", f"--ambient-caps=+{way}"] for way in _WAYS_THROUGH]
        for capability in ([], *lent):
            # Looked up for real: `test -x` asks access(2), which leaves lent rights out of account.
            probe = subprocess.run(  # noqa: S603 - the command is ours, no shell is involved
                [*switch, *capability, "stat", f"{self.folder}/."],
                check=False,
                capture_output=True,
                cwd="/",
            )
            if probe.returncode == 0:
                return [*switch, *capability]
        raise LocalServiceError(
            f"PostgreSQL can't run as root, and the user {owner.pw_name} can't reach {self.folder}: put the "
            "checkout into a folder that others may pass through, run as an ordinary user, or set "
            "HOLDFAST_DATABASE_URL"
        )


def _server_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LocalServiceError("PostgreSQL can't run as root, and there is neither a user postgres nor nobody")


def _server_environment() -> dict[str, str]:
    # The caller's PG* variables and locale are none of this server's business.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
