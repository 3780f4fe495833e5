"""
Handlers on a real database, with RabbitMQ left out: what they would publish is collected.

`run()` handles the commands that are not delayed until none is left; delayed ones wait in `delayed`.
"""

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, text

from infra.postgres.engine import create_database_engine
from infra.postgres.key_store import KeyStore, ensure_own_keys, find_own_public_keys
from infra.postgres.outbox import CommandRow, EventsRow, OutboxRow, lease_unpublished
from infra.postgres.step import Steps
from infra.rabbitmq.ingress import InboundEvent
from infra.security.encryption import Vault
from infra.security.passwords import Passwords
from infra.settings import Settings
from schemas.commands import COMMANDS, CollectReturns, Command, HoldFunds, ReleaseHold
from workers.escrow import claims, recourse_handlers
from workers.escrow import handlers as escrow
from workers.payment import handlers as payment
from workers.payout.bank import Bank
from workers.payout.handlers import passwords, refunds, requests, transfers, withdrawals
from workflow_support.banks import ScriptedBank
from workflow_support.events import PASSWORD, SellersPlatform, bank_credited, credit_data, fresh, order_data
from workflow_support.events import order_paid as order_paid_event

DAY_SECONDS = 86_400
ENCRYPTION_KEY = base64.b64encode(bytes(range(32))).decode()


@dataclass(frozen=True, slots=True)
class Told:
    """An event as it goes to a shop."""

    event_id: UUID
    shop: str
    type: str
    data: dict[str, Any]


class Desk:
    """One process's worth of handlers; `told` and `delayed` are what came out of them."""

    def __init__(self, engine: Engine, *, bank: Bank | None = None) -> None:
        self.engine = engine
        self.vault = Vault(ENCRYPTION_KEY)
        self.keys = KeyStore(engine, self.vault, cache_seconds=1.0)
        self.bank = bank or ScriptedBank()
        self.told: list[Told] = []
        self.commands: list[CommandRow] = []
        self.delayed: list[CommandRow] = []
        self._lock = threading.Lock()
        self.steps = Steps(engine, after_commit=self._collect, grace_seconds=2.0)
        # The cheapest argon2id there is: the tests are about counting, not about cost.
        self.password_tools = passwords.PasswordTools(
            Passwords(memory_kib=8, iterations=1, parallelism=1, concurrency=8),
            self.vault,
            self.keys.opener,
            ThreadPoolExecutor(4),
            cooling_off_seconds=DAY_SECONDS,
        )
        self.transfer_tools = transfers.TransferTools(self.bank, self.vault, ThreadPoolExecutor(4))
        self._handlers: dict[str, Callable[[Any], None]] = {
            "hold_funds": lambda c: escrow.hold_funds(self.steps, c, day_seconds=DAY_SECONDS),
            "release_hold": lambda c: escrow.release_hold(self.steps, c),
            "settle_claims": lambda c: claims.settle_claims(self.steps, c),
            "match_credits": lambda c: payment.match_credits(self.steps, c),
            "check_password": lambda c: passwords.check_passwords(self.steps, c, tools=self.password_tools),
            "resume_withdrawal": lambda c: withdrawals.resume_withdrawals(self.steps, c),
            "submit_transfer": lambda c: transfers.submit_transfers(self.steps, c, tools=self.transfer_tools),
            "check_transfer": lambda c: transfers.check_transfers(self.steps, c, tools=self.transfer_tools),
            "submit_refund": lambda c: refunds.submit_refunds(self.steps, c, tools=self.transfer_tools),
            "check_refund": lambda c: refunds.check_refunds(self.steps, c, tools=self.transfer_tools),
            "collect_returns": lambda c: transfers.collect_returns(
                self.steps, c, tools=self.transfer_tools, book_refunds=refunds.book_refund_answers
            ),
        }

    def close(self) -> None:
        self.password_tools.pool.shutdown()
        self.transfer_tools.pool.shutdown()

    # Who there is.

    def a_shop(
        self,
        *,
        protection_days: int = 3,
        funding: str = "confirmed",
        fee_bps: int = 0,
        state: str = "active",
    ) -> str:
        shop = fresh("shop")
        self.execute(
            "INSERT INTO shops (shop_id, state, protection_days, funding, fee_bps)"
            " VALUES (:shop, :state, :days, :funding, :fee)",
            shop=shop,
            state=state,
            days=protection_days,
            funding=funding,
            fee=fee_bps,
        )
        return shop

    def platform(self, shop: str) -> SellersPlatform:
        with self.engine.begin() as connection:
            ensure_own_keys(connection, self.vault)
            keys = find_own_public_keys(connection)["keys"]
        return SellersPlatform(shop, next(key for key in keys if key["use"] == "enc"))

    def a_seller(self, platform: SellersPlatform, *, available: int = 0, password: str = PASSWORD) -> str:
        """Enrol a seller to whom so much was released (CNY)."""
        seller = fresh("s")
        self.seller_asks(platform.enrols(seller, password=password))
        if available:
            self.released_order(platform.shop, splits={seller: available})
        self.told.clear()
        return seller

    # What happens.

    def shop_says(self, *events: InboundEvent) -> list[Told]:
        """Handle `order.paid` events in one batch, and the commands that follow; return what was told."""
        return self._run_and_tell(lambda: payment.receive_orders(self.steps, events))

    def bank_says(self, *events: InboundEvent) -> list[Told]:
        return self._run_and_tell(lambda: payment.receive_bank_events(self.steps, events))

    def buyers_ask(self, *events: InboundEvent) -> list[Told]:
        """Handle disputes, resolutions and refund requests in one batch, and what follows."""
        return self._run_and_tell(lambda: self.receive_recourse(*events))

    def receive_recourse(self, *events: InboundEvent) -> None:
        """Only the first step: what follows waits in `commands`."""
        recourse_handlers.receive_recourse(self.steps, events)

    def seller_asks(self, *events: InboundEvent) -> list[Told]:
        return self._run_and_tell(lambda: self.book_seller_requests(*events))

    def book_seller_requests(self, *events: InboundEvent) -> None:
        """Only the first step: the request is booked and waits for its password."""
        requests.receive_seller_events(self.steps, events, opener=self.keys.opener)

    def seller_withdraws(self, *events: InboundEvent) -> list[Told]:
        return self._run_and_tell(lambda: self.book_withdrawals(*events))

    def book_withdrawals(self, *events: InboundEvent) -> None:
        """Only the first step: the request is booked and waits for its password."""
        requests.receive_withdrawals(self.steps, events, opener=self.keys.opener)

    def released_order(self, shop: str, **order: Any) -> dict[str, Any]:
        """Bring a new order all the way to its release."""
        data = order_data(**order)
        self.shop_says(order_paid_event(shop, data))
        self.bank_says(bank_credited(credit_data(data)))
        self.pass_protection(shop, data["order_id"])
        self.ring_alarms()
        return data

    def pass_protection(self, shop: str, order_id: str, *, but_for: str = "0 seconds") -> None:
        """Move a hold into the past as a whole, so that its period has just ended, but for so much."""
        self.execute(
            """
            WITH shift AS (
                SELECT hold_id, release_at - clock_timestamp() - CAST(:but_for AS interval) AS by FROM holds
                WHERE shop_id = :shop AND order_id = :order AND state <> 'released'
            )
            UPDATE holds SET held_at = held_at - by, release_at = release_at - by
            FROM shift WHERE holds.hold_id = shift.hold_id
            """,
            shop=shop,
            order=order_id,
            but_for=but_for,
        )

    def run(self) -> None:
        """Handle undelayed commands, and what follows from them, until none is left."""
        while self.commands:
            with self._lock:
                batch, self.commands = self.commands, []
            # In the order of their coming, so that a run can be repeated.
            for name in dict.fromkeys(row.command for row in batch):
                self.handle(*[row for row in batch if row.command == name])

    def relay(self) -> None:
        """Publish what was left in the outbox, as the relay does, and handle what follows."""
        with self.engine.begin() as connection:
            rows = lease_unpublished(connection, limit=1000, lease_seconds=60, max_bytes=1 << 30)
        self._collect(rows)
        self.run()

    def ring_alarms(self, name: str | None = None) -> list[Told]:
        """Deliver what was delayed (of one name), whether it is time or not, and what follows."""
        with self._lock:
            ringing = [row for row in self.delayed if name in {None, row.command}]
            self.delayed = [row for row in self.delayed if row not in ringing]
            self.commands += ringing
        return self._run_and_tell(lambda: None)

    def release(self, *hold_ids: UUID) -> None:
        """Let an alarm ring for these holds, whatever was sent."""
        escrow.release_hold(self.steps, [ReleaseHold(hold_ids=hold_ids)])

    def collect_returns(self) -> None:
        """Ask the bank which settled transfers came back."""
        self._handlers["collect_returns"]([CollectReturns()])

    def hold(self, *payment_ids: UUID) -> None:
        escrow.hold_funds(self.steps, [HoldFunds(payment_ids=payment_ids)], day_seconds=DAY_SECONDS)

    def handle(self, *rows: CommandRow) -> None:
        """Hand commands of one name to their handler, as one batch."""
        self._handlers[rows[0].command]([command_of(row) for row in rows])

    def _run_and_tell(self, first: Callable[[], None]) -> list[Told]:
        before = len(self.told)
        first()
        self.run()
        return self.told[before:]

    def _collect(self, rows: Sequence[OutboxRow]) -> None:
        with self._lock:
            for row in rows:
                if isinstance(row, CommandRow):
                    (self.delayed if row.delay_ms else self.commands).append(row)
                else:
                    self.told += _told(row)

    # What the database says.

    def execute(self, statement: str, **values: object) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def value(self, statement: str, **values: object) -> Any:
        return self.execute(statement, **values)[0][0]


def command_of(row: CommandRow) -> Command:
    return COMMANDS[row.command].model_validate_json(row.arguments)


def _told(row: EventsRow) -> list[Told]:
    return [Told(event.event_id, row.shop_id, row.type, json.loads(event.data)) for event in row.events]


@contextmanager
def database_engine(database_url: str) -> Iterator[Engine]:
    """Build the engine that workers use, on this database."""
    settings = Settings.model_validate(
        {
            "broker_url": "amqp://nobody@127.0.0.1/",
            "database_url": database_url,
            "encryption_key": ENCRYPTION_KEY,
            "database_pool_size": 20,
        }
    )
    engine = create_database_engine(settings, application_name="tests")
    try:
        yield engine
    finally:
        engine.dispose()
