"""
Write down a release's statements, before the next one changes the schema.

    DATABASE_URL=postgresql://… .local/venv/bin/python tests/integration/changing/record_release.py FOLDER

on an empty database that the release's own `holdfast migrate` made, in a checkout of the release. The folder
is then committed, and `test_old_code_on_the_new_schema.py` carries it out on every schema that follows.
"""

# ruff: noqa: E402 - the folders of the tests are named before anything is imported from them

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

_TESTS = Path(__file__).parents[2]
sys.path[:0] = map(str, (Path(__file__).parent, _TESTS / "unit" / "schemas", _TESTS, _TESTS.parent))

from schema_examples import an_event, judge, valid_data
from sqlalchemy import Engine
from transcripts import Transcript, save, written_down
from workflow_support.banks import PENDING, REJECTED, SETTLED, ScriptedBank
from workflow_support.desk import DAY_SECONDS, Desk, database_engine
from workflow_support.events import (
    WRONG_PASSWORD,
    bank_credited,
    bank_debited,
    credit_data,
    debit_data,
    dispute_opened,
    dispute_resolved,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)

from infra.postgres.ledger_store import seal_postings
from infra.postgres.migrate import current_revision, migrate
from infra.postgres.outbox import delete_published, lease_unpublished, mark_published, postpone
from infra.rabbitmq.messages import Delivery
from ops.store.deployment import ensure_day_length
from schemas.commands import COMMANDS, Command
from schemas.inbound import INBOUND, InvalidData
from schemas.outgoing import OUTGOING
from workers.relay import recorder
from workers.relay.sweep import ask_for_returns, report_what_waits_for_people, sweep


def work(engine: Engine) -> Transcript:
    """Everything that workers do, as one thread does it; the transcript of it."""
    with written_down(engine) as transcript:
        bank = ScriptedBank(submit=[PENDING, SETTLED, REJECTED, SETTLED], find=[SETTLED])
        desk = Desk(engine, bank=bank)
        with engine.begin() as connection:
            ensure_day_length(connection, DAY_SECONDS)
        shop = desk.a_shop(fee_bps=150)
        _orders(desk, shop)
        _withdrawals(desk, shop, bank)
        _recourse(desk, shop)
        _relay(desk, engine)
        desk.close()
    return transcript


def _pass_protection(desk: Desk, order: dict[str, Any], *, but_for: timedelta = timedelta()) -> None:
    """Move an order's holds into the past, by times that are written down with the rest."""
    due = datetime.now(UTC) + but_for
    desk.execute(
        "UPDATE holds SET release_at = :due, held_at = :due - (release_at - held_at)"
        " WHERE order_id = :order AND state <> 'released'",
        due=due,
        order=order["order_id"],
    )


def _orders(desk: Desk, shop: str) -> None:
    first, second, third = order_data(splits={"s-1": 10_000, "s-2": 5_000}), order_data(), order_data()
    desk.shop_says(order_paid(shop, first), order_paid(shop, second))
    # A repeat, other content for a known order, a taken bank reference, data that breaks the schema.
    desk.shop_says(
        order_paid(shop, first),
        order_paid(shop, second | {"buyer_id": "b-2"}),
        order_paid(shop, order_data(bank_reference=first["bank_reference"])),
        order_paid(shop, order_data() | {"amount": -1}),
    )
    # Before the shop's word, after it, of another amount, and the same line with other content.
    desk.bank_says(bank_credited(credit_data(third)))
    desk.shop_says(order_paid(shop, third))
    line = credit_data(first)
    desk.bank_says(bank_credited(line), bank_credited(credit_data(second, amount=1)))
    desk.bank_says(bank_credited(line | {"amount": 3}))
    desk.ring_alarms("match_credits")
    for order in (first, second, third):
        _pass_protection(desk, order, but_for=timedelta(seconds=60))
    desk.ring_alarms("release_hold")
    _pass_protection(desk, first)
    desk.ring_alarms("release_hold")
    # The credit that a due hold waited for.
    _pass_protection(desk, second)
    desk.ring_alarms("release_hold")
    desk.bank_says(bank_credited(credit_data(second)))


def _withdrawals(desk: Desk, shop: str, bank: ScriptedBank) -> None:
    platform = desk.platform(shop)
    seller = desk.a_seller(platform)
    earned = order_data(splits={seller: 50_000})
    desk.shop_says(order_paid(shop, earned))
    desk.bank_says(bank_credited(credit_data(earned)))
    _pass_protection(desk, earned)
    desk.ring_alarms("release_hold")
    desk.seller_asks(platform.changes_password(seller, old=WRONG_PASSWORD, new="another password"))
    desk.seller_asks(platform.enrols(seller, destination_id="d-2"))
    for amount, password in (
        (1_000, None),
        (2_000, None),
        (3_000, None),
        (4_000, WRONG_PASSWORD),
        (10**9, None),
    ):
        wrong = {} if password is None else {"password": password}
        desk.seller_withdraws(platform.withdraws(seller, amount, **wrong))
        desk.ring_alarms("check_transfer")
    desk.seller_withdraws(platform.withdraws("nobody", 1))
    bank.sends_back(str(desk.value("SELECT end_to_end_id FROM transfers WHERE state = 'settled' LIMIT 1")))
    desk.collect_returns()


def _recourse(desk: Desk, shop: str) -> None:
    disputed, refunded, taken_back = order_data(), order_data(), order_data()
    for order in (disputed, refunded, taken_back):
        desk.shop_says(order_paid(shop, order))
        desk.bank_says(bank_credited(credit_data(order)))
    dispute_id = fresh("d")
    desk.buyers_ask(dispute_opened(shop, disputed, dispute_id=dispute_id))
    desk.buyers_ask(dispute_resolved(shop, dispute_id, {"s-1": 4_000}))
    desk.buyers_ask(refund_requested(shop, refunded, {"s-1": 2_500}))
    desk.buyers_ask(refund_requested(shop, order_data(), {"s-1": 1}))
    desk.ring_alarms("check_refund")
    for order in (disputed, refunded, taken_back):
        _pass_protection(desk, order)
    desk.ring_alarms("release_hold")
    desk.bank_says(bank_debited(debit_data(taken_back)))
    desk.bank_says(bank_debited(debit_data(order_data())))
    desk.bank_says(bank_credited(credit_data(taken_back)))


def _relay(desk: Desk, engine: Engine) -> None:
    # What the relay takes over has to be older than the grace.
    time.sleep(2.5)
    with engine.begin() as connection:
        rows = lease_unpublished(connection, limit=1_000, lease_seconds=30, max_bytes=1 << 20)
    with engine.begin() as connection:
        mark_published(connection, [row.outbox_id for row in rows[1:]])
        postpone(connection, [rows[0].outbox_id], base_seconds=0.5)
    with engine.begin() as connection:
        seal_postings(connection)
    with engine.begin() as connection:
        delete_published(connection, retention_seconds=1, limit=10)
    sweep(desk.steps, grace_seconds=0.0, queue_depth=lambda _queue: 0)
    report_what_waits_for_people(desk.steps, dispute_alarm_seconds=1)
    ask_for_returns(desk.steps)
    stranger = Delivery("quarantine", "", "order.paid", b"{", headers={"holdfast-reason": "not_json"})
    recorder.record(desk.steps, [stranger, stranger])


def _messages(revision: str) -> dict[str, Any]:
    """What may lie in a queue while the next release comes, and what shops were promised to read."""
    return {
        "revision": revision,
        "events": [
            {"event": an_event(type_), "content_hash": _content_hash(type_)} for type_ in sorted(INBOUND)
        ],
        "commands": [
            {"type": name, "body": _a_command(command)} for name, command in sorted(COMMANDS.items())
        ],
        "outgoing": {
            type_: {
                "fields": model.model_json_schema(mode="serialization")["properties"],
                "required": [name for name, field in model.model_fields.items() if field.is_required()],
            }
            for type_, model in sorted(OUTGOING.items())
        },
    }


def _content_hash(type_: str) -> str:
    data = judge(type_, valid_data(type_))
    assert not isinstance(data, InvalidData)
    return data.content_hash().hex()


def _a_command(command: type[Command]) -> dict[str, Any]:
    return {
        name: 2 if name == "tries" else [str(UUID(int=number)) for number in (1, 2)]
        for name in command.model_fields
    }


def main(folder: Path) -> None:
    url = os.environ["DATABASE_URL"]
    migrate(url)
    with database_engine(url) as engine:
        transcript = work(engine)
        with engine.connect() as connection:
            revision = current_revision(connection)
    folder.mkdir(exist_ok=True)
    save(transcript, folder / "transcript.jsonl")
    (folder / "messages.json").write_text(json.dumps(_messages(revision), indent=1) + "\n")
    uses = sum(map(len, transcript.transactions))
    sys.stdout.write(f"revision {revision}: {uses} uses of {len(transcript.statements)} statements\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
