"""`holdfast doctor`: what is reachable, which versions, what is wrong, and how to mend it."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import pika
import pika.exceptions
import typer
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from infra.postgres.engine import create_database_engine
from infra.postgres.key_store import find_own_public_keys
from infra.postgres.migrate import current_revision, pending_contraction, schema_problem
from infra.postgres.reencryption import count_under_other_keys
from infra.rabbitmq.amqp import CONNECTION_ERRORS, connection_parameters
from infra.rabbitmq.management import ManagementUnavailable
from infra.rabbitmq.topology import WORK_QUEUES
from infra.rabbitmq.verification import Verdict, judge_broker
from infra.security.encryption import open_vault
from infra.settings import Settings, SettingsError
from ops.environment import Environment, Need
from ops.failures import (
    NO,
    broker_place,
    database_place,
    describe_broker_error,
    describe_database_error,
)
from ops.options import JsonOption
from ops.output import print_json, print_table, say
from ops.store.deployment import find_day_length
from ops.store.payouts import count_in_review, find_pauses
from ops.store.quarantine import count_open
from ops.store.remedies import count_unremedied
from workers.exporter.books import GAUGES
from workers.payout.bank import BankUnavailable, HttpBank

# Signatures may be minutes ahead and passwords lock for minutes: seconds do no harm, more soon will.
_MAX_SKEW_SECONDS = 10.0
# By the exporter's gauge: how many seconds are normal, far above what it takes, and what more of them mean.
_RELAY = "is a relay running, and does its `/livez` answer?"
_PROGRESS = {
    "holdfast_seal_age_seconds": (90.0, "no relay has sealed", _RELAY),
    "holdfast_outbox_oldest_seconds": (120.0, "an outbox row has waited", _RELAY),
    "holdfast_oldest_due_hold_seconds": (
        300.0,
        "a hold that may be released has been due",
        "is an escrow worker running, and does its `/livez` answer?",
    ),
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at; `remedy` where it is wrong."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor(*, json: JsonOption = False) -> None:
    """Look at everything that a deployment needs; exits 1 if something is wrong."""
    found = [*_look_at_settings(), *_look_at_database(), *_look_at_broker(), *_look_at_bank()]
    ok = all(diagnosis.ok for diagnosis in found)
    if json:
        print_json({"ok": ok, "checks": [asdict(diagnosis) for diagnosis in found]})
    else:
        print_table(
            ("", "what", "found", "remedy"),
            [(("ok" if one.ok else "WRONG"), one.name, one.detail, one.remedy) for one in found],
        )
        wrong = sum(not one.ok for one in found)
        say(f"{wrong} of {len(found)} things are wrong" if wrong else "all is well")
    if not ok:
        raise typer.Exit(NO)


def _settings(needs: Need) -> Settings | None:
    """Return the settings of one part; a mistake in another part is told once, and hides nothing."""
    try:
        return Environment(needs).settings
    except SettingsError:
        return None


def _look_at_settings() -> Iterator[Diagnosis]:
    try:
        settings = Environment(Need.DATABASE | Need.BROKER | Need.VAULT).settings
    except SettingsError as error:
        yield Diagnosis("settings", False, str(error), "set or mend these variables")
    else:
        yield Diagnosis(
            "settings", True, f"{settings.environment}, a day of {settings.protection_day_seconds} seconds"
        )


def _look_at_database() -> Iterator[Diagnosis]:
    settings = _settings(Need.DATABASE)
    if settings is None:
        return
    engine = create_database_engine(settings, application_name="holdfast-doctor")
    try:
        with engine.connect() as connection:
            version = connection.execute(text("SHOW server_version")).scalar_one()
            yield Diagnosis("database", True, f"PostgreSQL {version} at {database_place(settings)}")
            yield _clock(connection)
            problem = schema_problem(connection)
            if problem is not None:
                detail, _, remedy = problem.rpartition(": ")
                yield Diagnosis("schema", False, detail, remedy)
                return
            yield _schema(connection)
            yield _day_length(connection, settings)
            yield _own_keys(connection)
            yield _payouts(connection)
            yield _reviews(connection)
            yield from _encryption(connection)
            waiting = ", ".join(f"{count} {kind}" for kind, count in count_open(connection).items())
            look = "look: `holdfast quarantine list`" if waiting else ""
            yield Diagnosis("quarantine", True, waiting or "nothing waits for an operator", look)
            yield from _remedies(connection)
            yield _progress(connection)
    except SQLAlchemyError as error:
        sentence = describe_database_error(error, settings)
        detail, _, remedy = sentence.rpartition(": ")
        yield Diagnosis("database", False, detail or sentence, remedy)
    finally:
        engine.dispose()


def _progress(connection: Connection) -> Diagnosis:
    """Look at what a process that hangs leaves undone; its connections stand, so all else looks well."""
    late = []
    for name, (most, what, remedy) in _PROGRESS.items():
        [gauge] = [gauge for gauge in GAUGES if gauge.name == name]
        seconds = float(connection.execute(text(gauge.query)).scalar_one())
        if seconds > most:
            late.append((f"{what} for {seconds:.0f} s", remedy))
    if not late:
        return Diagnosis("progress", True, "nothing rests that should move")
    details, remedies = zip(*late, strict=True)
    return Diagnosis("progress", False, "; ".join(details), "; ".join(dict.fromkeys(remedies)))


def _schema(connection: Connection) -> Diagnosis:
    revision, waiting = current_revision(connection), pending_contraction(connection)
    if waiting is None:
        return Diagnosis("schema", True, f"revision {revision}")
    detail = f"revision {revision}; {waiting} waits until no process of an older release runs"
    return Diagnosis("schema", True, detail, "then run `holdfast migrate --contract`")


def _remedies(connection: Connection) -> Iterator[Diagnosis]:
    """Name what waits for an operator's decision; it is no fault of the installation."""
    refunds, lines = count_unremedied(connection)
    yield Diagnosis(
        "refunds",
        True,
        f"{refunds} have failed" if refunds else "none has failed",
        "look: `holdfast refund list --state failed`" if refunds else "",
    )
    yield Diagnosis(
        "suspense",
        True,
        f"{lines} lines of the bank fit no order" if lines else "every line of the bank fits an order",
        "look: `holdfast suspense list`" if lines else "",
    )


def _clock(connection: Connection) -> Diagnosis:
    before = time.monotonic()
    theirs: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    ours = datetime.now(UTC)
    # The answer is as old as half of its journey.
    skew = (ours - theirs).total_seconds() - (time.monotonic() - before) / 2
    ok = abs(skew) <= _MAX_SKEW_SECONDS
    where = "ahead of" if skew > 0 else "behind"
    return Diagnosis(
        "clock",
        ok,
        f"this machine is {abs(skew):.3f} s {where} the database",
        "" if ok else "have both keep time by NTP: signatures carry it",
    )


def _day_length(connection: Connection, settings: Settings) -> Diagnosis:
    stored = find_day_length(connection)
    if stored is None:
        return Diagnosis("day length", False, "none is stored", "run `holdfast migrate`")
    if stored != settings.protection_day_seconds:
        return Diagnosis(
            "day length",
            False,
            f"{stored} seconds are stored, HOLDFAST_PROTECTION_DAY_SECONDS says"
            f" {settings.protection_day_seconds}",
            f"set it to {stored}",
        )
    return Diagnosis("day length", True, f"{stored} seconds")


def _own_keys(connection: Connection) -> Diagnosis:
    missing = {"sig", "enc"} - {key["use"] for key in find_own_public_keys(connection)["keys"]}
    if missing:
        detail = f"no key of use {' and '.join(sorted(missing))}"
        return Diagnosis("own keys", False, detail, "run `holdfast migrate`")
    return Diagnosis("own keys", True, "one to sign events, one to open what is sealed")


def _payouts(connection: Connection) -> Diagnosis:
    """A pause is somebody's decision, so it is shown and is no fault."""
    pauses = [
        f"{one['shop'] or 'all shops'} since {one['paused_at']:%Y-%m-%d %H:%M} UTC by {one['paused_by']}"
        f" ({one['reason']})"
        for one in find_pauses(connection)
    ]
    if not pauses:
        return Diagnosis("payouts", True, "not paused")
    return Diagnosis(
        "payouts", True, f"paused: {'; '.join(pauses)}", "when that is over: `holdfast payouts resume`"
    )


def _reviews(connection: Connection) -> Diagnosis:
    count, oldest = count_in_review(connection)
    if oldest is None:
        return Diagnosis("reviews", True, "no withdrawal waits for an operator")
    detail = f"{count} withdrawals wait for two operators, the oldest since {oldest:%Y-%m-%d %H:%M} UTC"
    return Diagnosis("reviews", True, detail, "look: `holdfast withdrawal list`")


def _encryption(connection: Connection) -> Iterator[Diagnosis]:
    """Look whether rows still need an old key; only where this shell has the keys."""
    settings = _settings(Need.VAULT)
    if settings is None:
        return
    others = count_under_other_keys(connection, open_vault(settings))
    if not others:
        yield Diagnosis("encryption", True, "everything rests under the current key")
        return
    listed = ", ".join(f"{count} {what}" for what, count in others.items())
    has_old_keys = settings.old_encryption_keys is not None
    yield Diagnosis(
        "encryption",
        has_old_keys,
        f"under another key: {listed}",
        "run `holdfast keys reencrypt`"
        if has_old_keys
        else "set HOLDFAST_ENCRYPTION_KEY to the key that they need, or add that to"
        " HOLDFAST_OLD_ENCRYPTION_KEYS and run `holdfast keys reencrypt`",
    )


def _look_at_broker() -> Iterator[Diagnosis]:
    settings = _settings(Need.BROKER)
    if settings is None:
        return
    url = str(settings.broker_url)
    try:
        connection = pika.BlockingConnection(connection_parameters(url, name="doctor"))
        try:
            # The blocking adapter does not show the server's own properties; its implementation does.
            properties = connection._impl.server_properties or {}  # noqa: SLF001 - see above
            version = f"{properties.get('product', 'AMQP')} {properties.get('version', 'unknown')}"
            yield Diagnosis("broker", True, f"{version} at {broker_place(settings)}")
            unattended = _unattended_queues(connection)
        finally:
            if connection.is_open:
                connection.close()
        verdict = _judge_broker(settings)
    except ManagementUnavailable as error:
        detail, _, remedy = str(error).rpartition(": ")
        yield Diagnosis("broker management", False, detail, remedy)
        verdict = None
    except CONNECTION_ERRORS as error:
        sentence = describe_broker_error(error, settings)
        detail, _, remedy = sentence.rpartition(": ")
        yield Diagnosis("broker", False, detail or sentence, remedy)
        return
    if verdict is not None:
        yield _topology(verdict)
    if unattended:
        detail = f"nobody consumes {', '.join(unattended)}"
        workers = sorted({queue.partition(".")[0] for queue in unattended})
        remedy = f"start the workers {', '.join(workers)} (Procfile)"
        yield Diagnosis("workers", False, detail, remedy)
    elif verdict is not None and verdict.ok:
        yield Diagnosis("workers", True, "every work queue has a consumer")


def _judge_broker(settings: Settings) -> Verdict:
    management = settings.broker_management_url
    return judge_broker(
        str(settings.broker_url),
        str(management) if management is not None else None,
        settings.protection_day_seconds,
        shop_ids=_registered_shops(),
    )


def _registered_shops() -> list[str]:
    """Return whose event queue there must be; where the database is away, that is its own finding."""
    settings = _settings(Need.DATABASE)
    if settings is None:
        return []
    engine = create_database_engine(settings, application_name="holdfast-doctor")
    try:
        with engine.connect() as connection:
            return list(connection.execute(text("SELECT shop_id FROM shops")).scalars())
    except SQLAlchemyError:
        return []
    finally:
        engine.dispose()


def _topology(verdict: Verdict) -> Diagnosis:
    if not verdict.ok:
        detail = "; ".join(f"{finding.drift} {finding.name}" for finding in verdict.findings)
        # What is missing can be declared; what differs or is not ours, only people may delete.
        only_missing = all(str(finding.drift).startswith("missing_") for finding in verdict.findings)
        remedy = (
            "run `holdfast topology apply`, then `topology verify`"
            if only_missing
            else "`holdfast topology verify` says what to do about each"
        )
        return Diagnosis("topology", False, detail, remedy)
    if verdict.not_checked:
        detail = f"as this version needs it; not checked: {'; not checked: '.join(verdict.not_checked)}"
        return Diagnosis("topology", True, detail)
    return Diagnosis("topology", True, "as this version needs it")


def _unattended_queues(connection: pika.BlockingConnection) -> list[str]:
    """Return work queues without a consumer; those that are missing are the topology's finding."""
    unattended: list[str] = []
    for queue in WORK_QUEUES:
        channel = connection.channel()
        try:
            frame = channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            continue
        if frame.method.consumer_count == 0:
            unattended.append(queue)
        channel.close()
    return unattended


def _look_at_bank() -> Iterator[Diagnosis]:
    settings = _settings(Need.NOTHING)
    if settings is None:
        return
    if settings.bank_url is None:
        yield Diagnosis("bank", False, "no bank to pay out through", "set HOLDFAST_BANK_URL")
        return
    place = f"{settings.bank_url.host}:{settings.bank_url.port}"
    bank = HttpBank(str(settings.bank_url), timeout_s=settings.bank_timeout_seconds)
    try:
        bank.returns_after(0, 1)
    except BankUnavailable as error:
        yield Diagnosis("bank", False, f"{place}: {error}", "start it, or mend HOLDFAST_BANK_URL")
    else:
        yield Diagnosis("bank", True, f"answers at {place}")
    finally:
        bank.close()
