"""
What the demonstration runs on: a Holdfast of its own under `.local/demo`, deleted when it is over.

Servers that the caller names are used as they are; then only workers and bank are the demonstration's own.
"""

import base64
import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pika
import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pika.exceptions import AMQPError, ChannelClosedByBroker
from pydantic import AmqpDsn, PostgresDsn, TypeAdapter, ValidationError

from infra.local.errors import LocalServiceError
from infra.local.files import read_json_object, write_whole
from infra.local.installation import LOCAL, Installation
from infra.local.services import is_private_url
from infra.rabbitmq.topology import PAYMENT_INTAKE
from ledger.accounts import ASSET_KINDS, HOUSE, AccountKind
from ops.demo.clients import Sign, sign_with_ed25519, sign_with_hmac
from ops.demo.errors import DemoFailed
from ops.demo.scenario import Balance, Shop, Signing

# So short that 3 to 7 days pass while somebody watches.
DAY_SECONDS = 1
_LONGEST_DAY_SECONDS = 10
_CONNECT_SECONDS = 5
_RESTART_SECONDS = 30.0
_POLL_SECONDS = 0.05
_SECRET_BYTES = 32

_DAY_VARIABLE = "HOLDFAST_PROTECTION_DAY_SECONDS"
_KEY_VARIABLES = ("HOLDFAST_ENCRYPTION_KEY", "HOLDFAST_PASSWORD_PEPPERS")
_BROKER_VARIABLE = "HOLDFAST_BROKER_URL"
_DATABASE_VARIABLE = "HOLDFAST_DATABASE_URL"

_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_SERVERS: Mapping[str, TypeAdapter[Any]] = {
    _BROKER_VARIABLE: TypeAdapter(AmqpDsn),
    _DATABASE_VARIABLE: TypeAdapter(PostgresDsn),
}

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What `holdfast audit` said."""

    ok: bool
    checks: Sequence[Mapping[str, Any]]


class Stage:
    """Starts, serves and removes the demonstration's installation; one at a time in a checkout."""

    def __init__(self, caller: Mapping[str, str]) -> None:
        """
        Describe what will run; nothing is started or written.

        Raises:
            DemoFailed: a server that the caller names can't be used for a demonstration.
        """
        self.folder = LOCAL / "demo"
        self.given = {
            name: _checked_url(name, url)
            for name in _SERVERS
            # What `make up` started and a sourced .local/env names is not the demonstration's to fill.
            if (url := caller.get(name, "")) and not is_private_url(url, LOCAL)
        }
        if self.given and caller.get("HOLDFAST_ENVIRONMENT") == "production":
            raise DemoFailed("HOLDFAST_ENVIRONMENT is production: no demonstration on servers in use")
        self.day_seconds = self._choose_day(caller)
        self.suffix = f"-{secrets.token_hex(3)}" if self.given else ""
        self._check_broker()
        self._installation = Installation(self.folder, caller=self._environment(caller))
        self._registered: list[str] = []
        self._broker_urls: dict[str, str] = {}
        self._lock: Any = None

    def __enter__(self) -> Self:
        LOCAL.mkdir(exist_ok=True)
        self._lock = (LOCAL / "demo.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise DemoFailed("another demonstration runs in this checkout") from None
        # One that was killed could not clean up after itself.
        self._remove()
        return self

    def __exit__(self, *_: object) -> None:
        # An impatient second Ctrl-C must not stop the clearing away.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _INTERRUPTIONS}
        try:
            self._remove()
            self._forget_shops()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._lock.close()

    @property
    def bank_url(self) -> str:
        return self._installation.bank_url

    @property
    def log_folder(self) -> Path:
        return self._installation.folders.log

    def start(self, announce: Announce) -> None:
        """Start servers, bank and workers, schema and topology applied; return when all are ready."""
        self._installation.up(announce)

    def keep_logs(self) -> Path | None:
        """Save the processes' logs from the removal; return where they are."""
        kept = LOCAL / "log" / "demo"
        if not self.log_folder.is_dir():
            return None
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.log_folder, kept)
        return kept

    # --- as the operator ---

    def register(self, shop: Shop) -> Sign:
        """Register a shop and its key with the `holdfast` command; return how the shop signs."""
        command = self._installation.run_command
        self._registered.append(shop.shop_id)
        terms = ("--protection-days", str(shop.protection_days), "--funding", shop.funding.value)
        command("shop", "add", shop.shop_id, *terms)
        self._broker_urls[shop.shop_id] = self._installation.shop_broker_url(shop.shop_id)
        scopes = ("--scope", "orders", "--scope", "sellers")
        if shop.signing is Signing.HMAC:
            secret = secrets.token_bytes(_SECRET_BYTES)
            file = self.folder / "secrets" / f"{shop.shop_id}.hmac"
            write_whole(file, f"whsec_{base64.b64encode(secret).decode()}\n", mode=0o600)
            command("shop", "key", "add", shop.shop_id, *scopes, "--hmac-file", str(file))
            return sign_with_hmac(secret)
        key = Ed25519PrivateKey.generate()
        public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
        command("shop", "key", "add", shop.shop_id, *scopes, "--ed25519", public)
        return sign_with_ed25519(key)

    def broker_url(self, shop_id: str) -> str:
        """Return the broker's URL with the user that a registered shop was given."""
        return self._broker_urls[shop_id]

    def public_keys(self) -> list[dict[str, str]]:
        """Return Holdfast's public keys (JWK), as a shop is given them."""
        key_set = json.loads(self._installation.run_command("keys", "public", "--json"))
        return [dict(jwk) for jwk in key_set["keys"]]

    def balances(self, shop: Shop) -> dict[str, Balance]:
        """Return what `holdfast balances` says of each seller of a shop, in the shop's currency."""
        printed = self._installation.run_command("balances", "--shop", shop.shop_id, "--json")
        names = Balance.__dataclass_fields__
        return {
            entry["seller"]: Balance(**{name: entry["balances"][shop.currency][name] for name in names})
            for entry in json.loads(printed)
        }

    def audit(self) -> AuditResult:
        """Return what `holdfast audit` says; a failing audit is an answer too."""
        try:
            said = json.loads(self._installation.run_command("audit", "--json"))
        except LocalServiceError as error:
            return AuditResult(ok=False, checks=[{"name": str(error), "ok": False, "checked": 0}])
        return AuditResult(bool(said["ok"]), said["checks"])

    # --- as somebody who looks into the database ---

    def account_totals(self, shop_id: str) -> dict[AccountKind, int]:
        """Add up a shop's accounts, each on its normal side."""
        rows = self._query(
            "SELECT account, sum(net_minor) FROM balance_lines WHERE shop_id = %(shop)s GROUP BY account",
            {"shop": shop_id},
        )
        totals = {AccountKind(account): int(net) for account, net in rows}
        return {kind: -net if kind in ASSET_KINDS else net for kind, net in totals.items()}

    def suspense_is_empty(self) -> bool | None:
        """Tell whether every credit found its order; None where the database holds more than ours."""
        if _DATABASE_VARIABLE in self.given:
            return None
        return not any(self.account_totals(HOUSE).values())

    def quarantine_reason(self, body: bytes) -> str | None:
        """Return why this very message was quarantined."""
        rows = self._query(
            "SELECT reason FROM recorded_messages WHERE kind = 'quarantine' AND body = %(body)s",
            {"body": body},
        )
        return str(rows[0][0]) if rows else None

    def _query(self, statement: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        with _connect(self._installation.database_url) as connection:
            return connection.execute(statement.encode(), values).fetchall()

    # --- as an accident ---

    def kill(self, name: str) -> int:
        """End a worker as an out-of-memory killer would (`kill -9`); return the process id it had."""
        facts = self._process(name)
        pid = facts.get("pid")
        if not isinstance(pid, int):
            raise DemoFailed(f"{name} is not running")
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_until_back(self, name: str, *, killed_pid: int) -> float:
        """Return how many seconds it took until the supervisor had the worker ready again."""
        begun_at = time.monotonic()
        while time.monotonic() - begun_at < _RESTART_SECONDS:
            facts = self._process(name)
            if facts.get("state") == "ready" and facts.get("pid") != killed_pid:
                return time.monotonic() - begun_at
            time.sleep(_POLL_SECONDS)
        raise DemoFailed(f"{name} was not ready again within {_RESTART_SECONDS:.0f} s after kill -9")

    def _process(self, name: str) -> dict[str, object]:
        processes = read_json_object(self._installation.folders.state).get("processes")
        facts = processes.get(name) if isinstance(processes, dict) else None
        return facts if isinstance(facts, dict) else {}

    # --- setting up and clearing away ---

    def _environment(self, caller: Mapping[str, str]) -> dict[str, str]:
        """Return the caller's environment without settings that were meant for another installation."""
        environment = {name: value for name, value in caller.items() if not name.startswith("HOLDFAST_")}
        environment |= self.given
        # A dozen processes start; where this is set, each would compile every module anew.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment[_DAY_VARIABLE] = str(self.day_seconds)
        # So that the bank's silence is noticed while somebody watches.
        environment["HOLDFAST_BANK_TIMEOUT_SECONDS"] = "1"
        environment["HOLDFAST_DRAIN_SECONDS"] = "5"
        if _DATABASE_VARIABLE in self.given:
            # Keys and passwords in a database outlive this run, so what protects them has to as well.
            lasting = Installation(caller=caller).environment()
            environment |= {name: lasting[name] for name in _KEY_VARIABLES}
        return environment

    def _choose_day(self, caller: Mapping[str, str]) -> int:
        url = self.given.get(_DATABASE_VARIABLE)
        if url is None:
            return DAY_SECONDS
        seconds = _day_of(url)
        if seconds is None:
            asked = caller.get(_DAY_VARIABLE, "")
            seconds = int(asked) if asked.isdecimal() and int(asked) else DAY_SECONDS
        if seconds > _LONGEST_DAY_SECONDS:
            raise DemoFailed(
                f"a protection day of this database lasts {seconds} s, and a demonstration has to wait for"
                f" several: give it a database without Holdfast's tables, or one with days of at most"
                f" {_LONGEST_DAY_SECONDS} s"
            )
        return seconds

    def _check_broker(self) -> None:
        url = self.given.get(_BROKER_VARIABLE)
        if url is not None and _DATABASE_VARIABLE not in self.given and _has_workers(url):
            raise DemoFailed(
                f"workers of another Holdfast consume {PAYMENT_INTAKE} at {_BROKER_VARIABLE}: they would take"
                " the demonstration's messages; give it a vhost of its own"
            )

    def _forget_shops(self) -> None:
        """Delete the shops' queues at a broker that stays, unless the database remembers them too."""
        if _BROKER_VARIABLE in self.given and _DATABASE_VARIABLE not in self.given and self._registered:
            connection = pika.BlockingConnection(pika.URLParameters(self.given[_BROKER_VARIABLE]))
            for shop_id in self._registered:
                connection.channel().queue_delete(f"events.{shop_id}")
            connection.close()

    def _remove(self) -> None:
        if self.folder.exists():
            Installation(self.folder, caller={}).down()
            shutil.rmtree(self.folder)


def _checked_url(variable: str, url: str) -> str:
    try:
        _SERVERS[variable].validate_python(url)
    except ValidationError:
        # `from None`: the error repeats the URL, and that may hold a password.
        raise DemoFailed(f"{variable} is not the URL of such a server") from None
    return url


def _connect(database_url: str) -> psycopg.Connection[tuple[Any, ...]]:
    # Settings accept a driver's name in the scheme; libpq does not.
    libpq_url = "postgresql://" + database_url.partition("://")[2]
    return psycopg.connect(libpq_url, connect_timeout=_CONNECT_SECONDS)


def _day_of(database_url: str) -> int | None:
    try:
        with _connect(database_url) as connection:
            if connection.execute("SELECT to_regclass('deployment')").fetchone() == (None,):
                return None
            row = connection.execute("SELECT protection_day_seconds FROM deployment").fetchone()
            return int(row[0]) if row else None
    except psycopg.Error as error:
        raise DemoFailed(f"{_DATABASE_VARIABLE}: {' '.join(str(error).split())}") from error


def _has_workers(broker_url: str) -> bool:
    try:
        connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    # pika reads a URL without a path as one too short.
    except (AMQPError, OSError, ValueError, IndexError) as error:
        raise DemoFailed(f"{_BROKER_VARIABLE}: can't connect ({type(error).__name__})") from error
    try:
        declared = connection.channel().queue_declare(PAYMENT_INTAKE, passive=True)
    except ChannelClosedByBroker:
        return False
    finally:
        if connection.is_open:
            connection.close()
    return bool(declared.method.consumer_count > 0)
