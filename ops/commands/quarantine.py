"""`holdfast quarantine`: look at what could not be processed, and decide what becomes of it."""

import base64
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import typer
from sqlalchemy import Connection

from infra.rabbitmq.messages import Outgoing, PublishOutcome
from infra.rabbitmq.publisher import Publisher, UnencodableMessage
from ops.environment import Environment, Need
from ops.failures import BadUsage, CommandFailed, broker_place
from ops.options import JsonOption, OperatorOption, RequiredWhyOption
from ops.output import print_json, print_table, say
from ops.replay import NotReplayable, replayed_message
from ops.store import quarantine as store
from ops.store.actions import Action, record_actions
from ops.store.quarantine import Record, Selection

# At most so many at once are locked, and so many bodies of up to a megabyte are in memory.
_PAGE = 64
_DEFAULT_LIMIT = 100

app = typer.Typer(help="Messages that could not be processed.", no_args_is_help=True)


class RecordState(StrEnum):
    """What has become of a recorded message."""

    OPEN = "open"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    ALL = "all"


class RecordKind(StrEnum):
    """Why it is on record: not authentic, failed too often, or its queue was missing."""

    QUARANTINE = "quarantine"
    DEAD_LETTER = "dead_letter"
    ORPHAN = "orphan"


IdsArgument = Annotated[list[UUID] | None, typer.Argument(metavar="[ID]...", help="As `list` shows them.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="All that are open for this reason.")]
KindOption = Annotated[RecordKind | None, typer.Option("--kind", help="Only of this kind.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only show which ones it would be.")]


@app.command("list")
def list_records(
    *,
    state: Annotated[RecordState, typer.Option("--state", help="Only in this state.")] = RecordState.OPEN,
    reason: Annotated[str | None, typer.Option("--reason", help="Only with this reason.")] = None,
    kind: KindOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = _DEFAULT_LIMIT,
    json: JsonOption = False,
) -> None:
    """Show recorded messages, the latest first."""
    with Environment(Need.DATABASE).reading() as connection:
        rows = store.find_records(
            connection,
            Selection(reason=reason, kind=kind and kind.value),
            state=None if state is RecordState.ALL else state.value,
            limit=limit,
        )
    _print_records(rows, json=json)
    if not json and len(rows) == limit:
        say(f"the latest {limit} are shown; --limit shows more")


@app.command("overflow")
def show_overflow(*, json: JsonOption = False) -> None:
    """Show what came when quarantine was full: counted by sender and reason, and let go."""
    with Environment(Need.DATABASE).reading() as connection:
        rows = store.find_overflow(connection)
    if json:
        print_json(rows)
        return
    print_table(
        ("sender", "reason", "messages#", "bytes#", "first seen (UTC)", "last seen (UTC)"),
        [
            (
                row["sender"] or "(unknown)",
                row["reason"],
                f"{row['messages']:,}",
                f"{row['bytes']:,}",
                f"{row['first_seen_at']:%Y-%m-%d %H:%M:%S}",
                f"{row['last_seen_at']:%Y-%m-%d %H:%M:%S}",
            )
            for row in rows
        ],
    )


@app.command("show")
def show_record(
    record_id: Annotated[UUID, typer.Argument(metavar="ID", help="As `list` shows it.")],
    *,
    json: JsonOption = False,
) -> None:
    """Show one message with its headers and body, as it came."""
    with Environment(Need.DATABASE).reading() as connection:
        row = store.find_record(connection, record_id)
    if row is None:
        raise CommandFailed(f"there is no record {record_id}")
    shown = row | _body(bytes(row.pop("body")))
    if json:
        print_json(shown)
        return
    for name, value in shown.items():
        if isinstance(value, dict):
            say(f"{name}:")
            for inner, inner_value in value.items():
                say(f"    {inner}: {inner_value}")
        elif value is not None:
            say(f"{name}: {value}")


@app.command("replay")
def replay_records(
    operator: OperatorOption,
    why: RequiredWhyOption,
    ids: IdsArgument = None,
    *,
    reason: ReasonOption = None,
    kind: KindOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """
    Publish messages again, as they came, to where they came from.

    One that fails again comes back and is open again.
    """
    selection = _selection(ids, reason, kind)
    if dry_run:
        _show_selected(selection, json=json)
        return
    environment = Environment(Need.DATABASE | Need.BROKER)
    done, left = 0, 0
    problems: set[str] = set()
    with environment.engine() as engine, environment.publisher() as publisher:
        after: UUID | None = None
        while True:
            with engine.begin() as connection:
                records = store.lock_open(connection, selection, after=after, limit=_PAGE)
                _refuse_missing(connection, selection, records, is_first=after is None)
                if not records:
                    break
                after = records[-1].record_id
                outgoing = list(_composed(records, problems))
                accepted = _publish(environment, publisher, outgoing, problems)
                _close(connection, accepted, state="replayed", operator=operator, why=why)
                done += len(accepted)
                left += len(records) - len(accepted)
                if outgoing and not accepted:
                    # The broker is away or lacks what is needed: the next page would fare no better.
                    break
    if json:
        print_json({"replayed": done, "left_open": left, "problems": sorted(problems)})
    else:
        say(f"{done} replayed, {left} left open")
    if left:
        raise CommandFailed(f"{left} messages were not replayed: {'; '.join(sorted(problems))}")


@app.command("discard")
def discard_records(
    operator: OperatorOption,
    why: RequiredWhyOption,
    ids: IdsArgument = None,
    *,
    reason: ReasonOption = None,
    kind: KindOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Close messages without doing anything with them; they stay on record."""
    selection = _selection(ids, reason, kind)
    if dry_run:
        _show_selected(selection, json=json)
        return
    done = 0
    with Environment(Need.DATABASE).engine() as engine:
        after: UUID | None = None
        while True:
            with engine.begin() as connection:
                records = store.lock_open(connection, selection, after=after, limit=_PAGE)
                _refuse_missing(connection, selection, records, is_first=after is None)
                if not records:
                    break
                after = records[-1].record_id
                _close(connection, records, state="discarded", operator=operator, why=why)
                done += len(records)
    if json:
        print_json({"discarded": done})
    else:
        say(f"{done} discarded")


def _selection(ids: Sequence[UUID] | None, reason: str | None, kind: RecordKind | None) -> Selection:
    if bool(ids) == (reason is not None):
        raise BadUsage("name what is meant: one or more ids, or --reason")
    return Selection(tuple(sorted(set(ids or ()))), reason, kind and kind.value)


def _refuse_missing(
    connection: Connection, selection: Selection, records: Sequence[Record], *, is_first: bool
) -> None:
    """An id that names nothing open is a mistake; then nothing at all is done."""
    if not is_first or not selection.record_ids:
        return
    open_ids = {record.record_id for record in records}
    if len(selection.record_ids) > _PAGE:
        raise BadUsage(f"at most {_PAGE} ids at once; --reason takes all of a reason")
    for record_id in selection.record_ids:
        if record_id not in open_ids:
            row = store.find_record(connection, record_id)
            state = "not on record" if row is None else f"{row['state']}, not open"
            if row is not None and row["state"] == "open":
                state = f"of kind {row['kind']}"
            raise CommandFailed(f"{record_id} is {state}; nothing was done")


def _composed(records: Sequence[Record], problems: set[str]) -> Iterator[tuple[Record, Outgoing]]:
    for record in records:
        try:
            yield record, replayed_message(record)
        except NotReplayable as error:
            problems.add(f"{record.record_id}: {error}")


def _publish(
    environment: Environment,
    publisher: Publisher,
    outgoing: Sequence[tuple[Record, Outgoing]],
    problems: set[str],
) -> list[Record]:
    """Publish with confirms; return the records whose message has safely arrived."""
    accepted: list[Record] = []
    try:
        outcomes = publisher.publish(
            [message for _, message in outgoing],
            timeout_s=environment.settings.publish_timeout_seconds,
        )
    except UnencodableMessage as error:
        # Which one it is, is found one by one: their properties are strangers'.
        outcomes = []
        for _, message in outgoing:
            try:
                outcomes += publisher.publish(
                    [message], timeout_s=environment.settings.publish_timeout_seconds
                )
            except UnencodableMessage:
                outcomes.append(PublishOutcome.UNKNOWN)
        problems.add(f"properties that AMQP can't carry ({error})")
    for (record, message), outcome in zip(outgoing, outcomes, strict=True):
        match outcome:
            case PublishOutcome.CONFIRMED:
                accepted.append(record)
            case PublishOutcome.UNKNOWN:
                problems.add(f"no confirm from the broker at {broker_place(environment.settings)}")
            case PublishOutcome.REFUSED:
                problems.add(f"the queue behind {message.routing_key} is full")
            case PublishOutcome.UNROUTABLE:
                problems.add(f"nothing is bound for {message.routing_key}: run `holdfast topology apply`")
    return accepted


def _close(connection: Connection, records: Sequence[Record], *, state: str, operator: str, why: str) -> None:
    if records:
        store.close_records(connection, [record.record_id for record in records], state=state)
        record_actions(
            connection,
            [
                Action(operator, f"message_{state}", str(record.record_id), why, record.details)
                for record in records
            ],
        )


def _show_selected(selection: Selection, *, json: bool) -> None:
    with Environment(Need.DATABASE).reading() as connection:
        rows = store.find_records(connection, selection, state="open", limit=1_000_000)
    _print_records(rows, json=json)
    if not json:
        say(f"{len(rows)} messages; nothing was done")


def _print_records(rows: Sequence[dict[str, Any]], *, json: bool) -> None:
    if json:
        print_json(rows)
        return
    print_table(
        (
            "id",
            "kind",
            "queue",
            "routing key",
            "reason",
            "detail",
            "state",
            "seen#",
            "last seen (UTC)",
            "bytes#",
        ),
        [
            (
                row["id"],
                row["kind"],
                row["queue"],
                row["routing_key"],
                row["reason"],
                row["detail"],
                row["state"],
                row["times_seen"],
                row["last_seen_at"],
                row["bytes"],
            )
            for row in rows
        ],
    )


def _body(raw: bytes) -> dict[str, object]:
    """Show a body as text where it is text; as base64 it is always exact."""
    try:
        return {"body": raw.decode(), "bytes": len(raw)}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(raw).decode(), "bytes": len(raw)}
