"""Operators look at what could not be processed, replay it or let it go; each of it on record."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from broker_access import take_all
from command_runs import Holdfast
from sqlalchemy import Engine, text
from workflow_support.events import fresh

from infra.postgres.recorded_messages import RecordedMessage, record_messages

HEADERS = {"webhook-id": "e-1", "webhook-timestamp": "1", "webhook-signature": "v1a,AAAA"}


@pytest.fixture
def set_up(holdfast: Holdfast) -> Holdfast:
    for arguments in (("migrate",), ("topology", "apply")):
        assert holdfast(*arguments).exit_code == 0
    return holdfast


def a_message(**changes: Any) -> RecordedMessage:
    values: dict[str, Any] = {
        "kind": "quarantine",
        "queue": "payment.intake",
        "exchange": "",
        "routing_key": "order.paid",
        "body": fresh("body").encode(),
        "reason": fresh("reason"),
        "detail": "no signature of an active key fits",
        "content_type": "application/cloudevents+json",
        "headers": dict(HEADERS),
    }
    return RecordedMessage(**values | changes)


def record(engine: Engine, *messages: RecordedMessage) -> None:
    with engine.begin() as connection:
        record_messages(connection, messages, now=datetime.now(UTC))


def rows(engine: Engine, reason: str) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(
            text("""
                SELECT record_id, state, times_seen, closed_at IS NOT NULL AS closed FROM recorded_messages
                WHERE reason = :reason ORDER BY record_id
            """),
            {"reason": reason},
        ).all()


def actions(engine: Engine, why: str) -> list[tuple[str, str, str]]:
    with engine.connect() as connection:
        found = connection.execute(
            text("""
                SELECT operator, action, subject FROM operator_actions
                WHERE reason = :why ORDER BY action_id
            """),
            {"why": why},
        )
        return [tuple(row) for row in found]


def test_a_message_is_listed_and_shown_as_it_came(set_up: Holdfast, engine: Engine) -> None:
    text_message, raw_message = a_message(), a_message(body=b"\xff\x00")
    record(engine, text_message, text_message, raw_message)
    [listed] = set_up("quarantine", "list", "--reason", text_message.reason, "--json").json
    assert (listed["kind"], listed["times_seen"], listed["state"]) == ("quarantine", 2, "open")
    shown = set_up("quarantine", "show", listed["id"], "--json").json
    assert shown["body"] == text_message.body.decode()
    assert shown["headers"] == HEADERS
    [raw] = rows(engine, raw_message.reason)
    assert set_up("quarantine", "show", str(raw.record_id), "--json").json["body_base64"] == "/wA="
    assert set_up("quarantine", "show", str(raw.record_id)).exit_code == 0


def test_a_replayed_message_arrives_where_it_came_from_and_is_closed(
    set_up: Holdfast, engine: Engine, broker_url: str
) -> None:
    message, why = a_message(), fresh("why")
    record(engine, message)
    [row] = rows(engine, message.reason)
    take_all(broker_url, "payment.intake")
    ran = set_up("quarantine", "replay", str(row.record_id), "--why", why, "--operator", "bo", "--json")
    assert ran.json == {"replayed": 1, "left_open": 0, "problems": []}
    [(method, properties, body)] = take_all(broker_url, "payment.intake")
    assert (method.exchange, method.routing_key, body) == ("holdfast.inbound", "order.paid", message.body)
    assert HEADERS.items() <= properties.headers.items()
    assert properties.content_type == message.content_type
    [after] = rows(engine, message.reason)
    assert (after.state, after.closed) == ("replayed", True)
    assert actions(engine, why) == [("bo", "message_replayed", str(row.record_id))]


def test_a_replayed_message_that_fails_again_is_open_again(set_up: Holdfast, engine: Engine) -> None:
    message = a_message()
    record(engine, message)
    assert set_up("quarantine", "replay", "--reason", message.reason, "--why", "x").exit_code == 0
    record(engine, message)
    [row] = rows(engine, message.reason)
    assert (row.state, row.times_seen) == ("open", 2)


def test_a_dead_letter_goes_back_to_its_work_queue(set_up: Holdfast, engine: Engine, broker_url: str) -> None:
    message = a_message(
        kind="dead_letter",
        queue="escrow.hold",
        routing_key="escrow.hold",
        message_type="hold_funds",
        content_type="application/json",
        headers={"holdfast-exchange": "holdfast.deliver", "holdfast-attempt": 8},
    )
    record(engine, message)
    take_all(broker_url, "escrow.hold")
    assert set_up("quarantine", "replay", "--reason", message.reason, "--why", "x").exit_code == 0
    [(_, properties, body)] = take_all(broker_url, "escrow.hold")
    assert (properties.type, body) == ("hold_funds", message.body)
    assert "holdfast-attempt" not in properties.headers


def test_a_reason_is_replayed_in_bulk_beyond_one_page(
    set_up: Holdfast, engine: Engine, broker_url: str
) -> None:
    reason, why = fresh("reason"), fresh("why")
    record(engine, *(a_message(reason=reason) for _ in range(150)))
    take_all(broker_url, "payment.intake")
    dry = set_up("quarantine", "replay", "--reason", reason, "--why", why, "--dry-run", "--json")
    assert len(dry.json) == 150
    assert {row.state for row in rows(engine, reason)} == {"open"}
    assert take_all(broker_url, "payment.intake") == []
    assert actions(engine, why) == []
    assert set_up("quarantine", "replay", "--reason", reason, "--why", why, "--json").json["replayed"] == 150
    assert len(take_all(broker_url, "payment.intake")) == 150
    assert {row.state for row in rows(engine, reason)} == {"replayed"}
    assert len(actions(engine, why)) == 150
    nothing = set_up("quarantine", "replay", "--reason", reason, "--why", why, "--json")
    assert nothing.json["replayed"] == 0


def test_a_discarded_message_stays_on_record_and_closed(set_up: Holdfast, engine: Engine) -> None:
    message, why = a_message(), fresh("why")
    record(engine, message)
    [row] = rows(engine, message.reason)
    discard = ("quarantine", "discard", str(row.record_id), "--why", why)
    assert set_up(*discard).exit_code == 0
    record(engine, message)
    [after] = rows(engine, message.reason)
    assert (after.state, after.times_seen) == ("discarded", 2)
    again = set_up(*discard)
    assert again.exit_code == 1
    assert "discarded, not open" in again.err
    assert actions(engine, why) == [("ada", "message_discarded", str(row.record_id))]


def test_one_wrong_id_among_several_changes_nothing(set_up: Holdfast, engine: Engine) -> None:
    message = a_message()
    record(engine, message)
    [row] = rows(engine, message.reason)
    wrong = "00000000-0000-0000-0000-000000000009"
    ran = set_up("quarantine", "discard", str(row.record_id), wrong, "--why", "x")
    assert (ran.exit_code, ran.err.count("\n")) == (1, 1)
    assert wrong in ran.err
    assert [row.state for row in rows(engine, message.reason)] == ["open"]


def test_what_the_broker_does_not_take_stays_open(
    set_up: Holdfast,
    engine: Engine,
    make_vhost: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A vhost without our exchanges: nothing is lost, and the operator is told."""
    message, why = a_message(), fresh("why")
    record(engine, message)
    monkeypatch.setenv("HOLDFAST_BROKER_URL", make_vhost())
    monkeypatch.setenv("HOLDFAST_PUBLISH_TIMEOUT_SECONDS", "2")
    refused = set_up("quarantine", "replay", "--reason", message.reason, "--why", why)
    assert refused.exit_code == 1
    assert "no confirm" in refused.err
    assert [row.state for row in rows(engine, message.reason)] == ["open"]
    assert actions(engine, why) == []


def test_a_message_that_cannot_be_replayed_does_not_hold_up_the_others(
    set_up: Holdfast, engine: Engine, broker_url: str
) -> None:
    reason = fresh("reason")
    refused_event = a_message(reason=reason, queue="", exchange="holdfast.inbound", headers={})
    unencodable = a_message(reason=reason, content_type="x" * 300)
    record(engine, a_message(reason=reason), refused_event, unencodable)
    take_all(broker_url, "payment.intake")
    ran = set_up("quarantine", "replay", "--reason", reason, "--why", "x", "--json")
    assert ran.exit_code == 1
    assert (ran.json["replayed"], ran.json["left_open"]) == (1, 2)
    assert ran.err.count("\n") == 1
    assert sorted(row.state for row in rows(engine, reason)) == ["open", "open", "replayed"]


def test_hostile_details_stay_on_their_line(set_up: Holdfast, engine: Engine) -> None:
    message = a_message(detail="first\n\x1b[2Jsecond", headers={"webhook-id": "[bold]x\r\nforged"})
    record(engine, message)
    [row] = rows(engine, message.reason)
    for ran in (
        set_up("quarantine", "list", "--reason", message.reason),
        set_up("quarantine", "show", str(row.record_id)),
    ):
        assert "\x1b" not in ran.out
        assert "\nforged" not in ran.out
        assert "\nsecond" not in ran.out
