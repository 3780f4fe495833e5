"""The demonstration itself, from the shops' registration to the audit."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ops.demo import clients
from ops.demo.checks import (
    Check,
    check_accounts,
    check_audit,
    check_balances,
    check_bank,
    check_holds,
    check_quarantine,
    check_refusals,
    check_releases,
    check_repeats,
    check_signatures,
    check_withdrawals,
    outcomes_of,
)
from ops.demo.clients import BankClient, EventReader, Inbox, Message, Publisher, Sign
from ops.demo.display import Display, ShopView, money
from ops.demo.recourse import RecourseAct
from ops.demo.scenario import Order, Outcome, Shop, Split, Withdrawal
from ops.demo.stage import Stage

# A slow machine gets its time; what takes longer is stuck.
_STEP_SECONDS = 30.0
_POLL_SECONDS = 0.1
_CREDIT_EVERY = 100
# So many orders' money is at the bank before the shop has said a word about them.
_CREDITED_AHEAD = 10
_VICTIM = "escrow.1"
# The worker is killed when the first of many orders are held and most are still on their way.
_HELD_WHEN_KILLED = 150


class Story:
    """Plays the scenario on a running stage, then checks what came of it."""

    def __init__(self, stage: Stage, display: Display, shops: Sequence[Shop], recourse_shop: Shop) -> None:
        self._stage = stage
        self._display = display
        self._shops = shops
        self._inboxes = {shop.shop_id: Inbox() for shop in shops}
        self._views = {shop.shop_id: ShopView(shop, self._inboxes[shop.shop_id]) for shop in shops}
        self._complaints = RecourseAct(recourse_shop, Inbox(), display)
        self._inboxes[recourse_shop.shop_id] = self._complaints.inbox
        self._signs: Mapping[str, Sign] = {}
        self._public_keys: Sequence[Mapping[str, str]] = []
        self._bank = BankClient(stage.bank_url)
        # By what is wrong with them, for the comparison with the quarantine.
        self._not_authentic: dict[str, Message] = {}
        self._refused: dict[str, dict[str, str]] = {shop.shop_id: {} for shop in shops}

    def play(self) -> list[Check]:
        """
        Run everything once and return what was promised and whether it was kept.

        Raises:
            DemoFailed: something did not happen in time.
        """
        self._register()
        with ExitStack() as cleanup:
            cleanup.callback(self._bank.close)
            cleanup.enter_context(self._reading_events())
            with self._display.watching(list(self._views.values())):
                self._prepare_bank_and_sellers()
                self._sell()
                self._misbehave()
                with self._publisher(self._complaints.shop) as publisher:
                    self._complaints.complain(publisher, self._bank)
                self._await_releases()
                self._complaints.await_end()
                self._withdraw()
                self._await_quarantine()
            return self._check()

    # --- one part after the other ---

    def _register(self) -> None:
        with ThreadPoolExecutor() as pool:
            public_keys = pool.submit(self._stage.public_keys)
            shops = [*self._shops, self._complaints.shop]
            signs = list(pool.map(self._stage.register, shops))
        self._public_keys = public_keys.result()
        self._signs = {shop.shop_id: sign for shop, sign in zip(shops, signs, strict=True)}
        for shop in shops:
            word = "the bank's credit" if shop.funding == "confirmed" else "the shop's word"
            self._say(
                f"`holdfast shop add {shop.shop_id}`: {shop.protection_days} days of protection, released on"
                f" {word}, signs with {shop.signing.value}"
            )

    @contextmanager
    def _reading_events(self) -> Iterator[None]:
        keys = [jwk for jwk in self._public_keys if jwk["use"] == "sig"]
        readers = [
            EventReader(self._stage.broker_url(shop_id), shop_id, keys, inbox)
            for shop_id, inbox in self._inboxes.items()
        ]
        for reader in readers:
            reader.start()
        try:
            yield
        finally:
            for reader in readers:
                reader.stop()

    def _prepare_bank_and_sellers(self) -> None:
        for shop in self._shops:
            with self._publisher(shop) as publisher:
                for seller in shop.sellers:
                    self._bank.behave(seller)
                    publisher.send(clients.seller_enrolled(seller, self._sealing_key))
        for shop in self._shops:
            self._await_events(shop, "seller.accepted", len(shop.sellers))
        count = sum(len(shop.sellers) for shop in self._shops)
        self._say(
            f"{count} sellers enrolled; passwords and accounts travel sealed (JWE), only Holdfast opens them"
        )

    def _sell(self) -> None:
        """Publish all orders from both shops at once, and kill a worker while they are on their way."""
        total = sum(len(shop.orders) for shop in self._shops)
        self._say(f"the shops publish {total:,} signed orders, singly and in batches; buyers pay at the bank")
        with ThreadPoolExecutor() as pool:
            selling = [pool.submit(self._publish_orders, shop) for shop in self._shops]
            self._kill_a_worker(selling)
            for future in selling:
                future.result()
        self._say(f"all {total:,} orders published, each confirmed by the broker")
        for shop in self._shops:
            self._await_events(shop, "order.held", len(shop.orders))
        self._say(f"all {total:,} orders are held")

    def _publish_orders(self, shop: Shop) -> None:
        self._bank.credit(shop.orders[:_CREDITED_AHEAD])
        unpaid = list(shop.orders[_CREDITED_AHEAD:])
        with self._publisher(shop) as publisher:
            for message, orders in _order_messages(shop):
                publisher.send(message)
                view = self._views[shop.shop_id]
                view.note_announced([order.order_id for order in orders])
                if view.announced % _CREDIT_EVERY == 0:
                    paid, unpaid = unpaid[:_CREDIT_EVERY], unpaid[_CREDIT_EVERY:]
                    self._bank.credit(order for order in paid if order.credited)
        self._bank.credit(order for order in unpaid if order.credited)

    def _kill_a_worker(self, selling: Sequence[Future[None]]) -> None:
        shop = self._shops[0]
        inbox = self._inboxes[shop.shop_id]

        def in_the_middle() -> bool:
            failed = any(future.done() and future.exception() for future in selling)
            return failed or inbox.count("order.held") >= _HELD_WHEN_KILLED

        self._wait(shop, in_the_middle, "the first orders to be held")
        pid = self._stage.kill(_VICTIM)
        self._say(
            f"kill -9 {pid}: the worker {_VICTIM} is gone in the middle of its work", style="bold yellow"
        )
        seconds = self._stage.wait_until_back(_VICTIM, killed_pid=pid)
        self._say(f"{_VICTIM} is back after {seconds:.1f} s", style="bold yellow")

    def _misbehave(self) -> None:
        """Send what shops should not send, and what was never theirs."""
        for shop in self._shops:
            with self._publisher(shop) as publisher:
                self._send_repeats(shop, publisher)
        first, second = self._shops[0], self._shops[-1]
        forged = clients.single(
            clients.order_paid(replace(first.orders[0], order_id="o-forged"), event_id="forged")
        )
        self._not_authentic["forgery"] = forged
        # Whoever has got hold of a shop's user of the broker still lacks its key.
        sign = clients.sign_with_hmac(secrets.token_bytes(32))
        with Publisher(self._stage.broker_url(first.shop_id), sign) as forger:
            forger.send(forged)
        whole = clients.single(
            clients.order_paid(replace(second.orders[0], order_id="o-torn"), event_id="torn")
        )
        torn = replace(whole, body=whole.body[: len(whole.body) // 2])
        self._not_authentic["malformed body"] = torn
        with self._publisher(second) as publisher:
            publisher.send(torn)
        self._say(
            "sent as well: exact duplicates, a conflicting duplicate, splits that do not add up, a forgery,"
            " a body cut in half"
        )
        for shop in self._shops:
            self._await_events(shop, "order.rejected", len(self._refused[shop.shop_id]))

    def _send_repeats(self, shop: Shop, publisher: Publisher) -> None:
        same_event, *same_order = shop.repeated_orders
        publisher.send(clients.single(clients.order_paid(same_event)))
        again = [clients.order_paid(order, event_id=f"{order.event_id}-again") for order in same_order]
        broken = replace(shop.orders[0], order_id="o-broken", bank_reference=f"{shop.shop_id}/broken")
        # In one batch with good neighbours, who must not suffer from it.
        publisher.send(
            clients.batch([*again, clients.order_paid(broken, event_id="broken", amount=broken.amount + 1)])
        )
        other = replace(shop.contested_order, splits=(Split("s-01", shop.contested_order.amount + 100),))
        publisher.send(clients.single(clients.order_paid(other, event_id="contest")))
        self._refused[shop.shop_id] = {"contest": "conflicting_duplicate", "broken": "invalid_data"}

    def _await_releases(self) -> None:
        longest = max(order.protection_days or 0 for shop in self._shops for order in shop.orders)
        self._say(
            f"protection periods end: 3 to {longest} days of {self._stage.day_seconds} s each, for the"
            " demonstration only"
        )
        for shop in self._shops:
            holds = sum(len(order.splits) for order in shop.orders if shop.is_released(order))
            periods = longest * self._stage.day_seconds
            self._await_events(shop, "hold.released", holds, timeout_s=_STEP_SECONDS + periods)
            self._await_events(shop, "order.funded", sum(order.credited for order in shop.orders))
            inbox = self._inboxes[shop.shop_id]
            self._wait(shop, _answered_again(shop, inbox), "the duplicates' answers")
        self._say("everything that may be released is withdrawable")

    def _withdraw(self) -> None:
        for shop in self._shops:
            with self._publisher(shop) as publisher:
                for withdrawal in shop.withdrawals:
                    publisher.send(clients.withdrawal_requested(withdrawal, self._sealing_key))
                    if withdrawal.outcome in {Outcome.WRONG_PASSWORD, Outcome.INSUFFICIENT_FUNDS}:
                        # The audience sees the answer before the next try.
                        self._await_outcome(shop, withdrawal)
        for shop in self._shops:
            for withdrawal in shop.withdrawals:
                if withdrawal.outcome in {Outcome.SETTLED, Outcome.REJECTED_BY_BANK}:
                    self._await_outcome(shop, withdrawal)

    def _await_outcome(self, shop: Shop, withdrawal: Withdrawal) -> None:
        inbox = self._inboxes[shop.shop_id]
        self._wait(
            shop, lambda: bool(outcomes_of(withdrawal, inbox)), f"the end of {withdrawal.withdrawal_id}"
        )
        ended = outcomes_of(withdrawal, inbox)[0]
        amount = f"{money(withdrawal.amount, withdrawal.currency)} {withdrawal.currency}"
        self._say(
            f"{shop.shop_id}/{withdrawal.seller.seller_id} withdraws {amount} {withdrawal.told}: {ended}",
            style="green" if ended == Outcome.SETTLED else "yellow",
        )

    def _await_quarantine(self) -> None:
        deadline = time.monotonic() + _STEP_SECONDS
        while None in self._quarantined().values() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    # --- what came of it ---

    def _check(self) -> list[Check]:
        totals = {shop.shop_id: self._stage.account_totals(shop.shop_id) for shop in self._shops}
        self._display.accounts(self._shops, totals)
        with ThreadPoolExecutor() as pool:
            audit = pool.submit(self._stage.audit)
            balances = list(pool.map(self._stage.balances, self._shops))
        checks: list[Check] = []
        for shop, found in zip(self._shops, balances, strict=True):
            inbox = self._inboxes[shop.shop_id]
            checks += [
                check_holds(shop, inbox),
                check_releases(shop, inbox),
                check_repeats(shop, inbox),
                check_refusals(shop, inbox, self._refused[shop.shop_id]),
                check_signatures(shop, inbox),
                check_withdrawals(shop, inbox),
                check_balances(shop, found),
                check_accounts(shop, totals[shop.shop_id]),
            ]
        expected = {"forgery": "bad_signature", "malformed body": "not_json"}
        checks.append(check_quarantine(self._quarantined(), expected))
        wharf = self._complaints.shop
        checks += self._complaints.check(
            self._stage.balances(wharf), self._stage.account_totals(wharf.shop_id)
        )
        checks.append(
            check_bank(self._shops, self._inboxes, self._bank.journal(), self._complaints.sent_back)
        )
        if self._stage.suspense_is_empty() is not None:
            problems = [] if self._stage.suspense_is_empty() else ["money at the bank that no order explains"]
            checks.append(Check("every credit of the bank found its order", problems))
        result = audit.result()
        checks.append(check_audit(ok=result.ok, checks=result.checks))
        return checks

    def _quarantined(self) -> dict[str, str | None]:
        return {
            what: self._stage.quarantine_reason(message.body) for what, message in self._not_authentic.items()
        }

    # --- small things ---

    @property
    def _sealing_key(self) -> Mapping[str, str]:
        return next(jwk for jwk in self._public_keys if jwk["use"] == "enc")

    def _publisher(self, shop: Shop) -> Publisher:
        return Publisher(self._stage.broker_url(shop.shop_id), self._signs[shop.shop_id])

    def _say(self, text: str, *, style: str = "") -> None:
        self._display.say(text, style=style)

    def _await_events(self, shop: Shop, type_: str, count: int, *, timeout_s: float = _STEP_SECONDS) -> None:
        inbox = self._inboxes[shop.shop_id]

        def all_there() -> bool:
            return inbox.count(type_) >= count

        self._wait(shop, all_there, f"{count:,} {type_}", timeout_s=timeout_s)

    def _wait(
        self, shop: Shop, arrived: Callable[[], bool], what: str, *, timeout_s: float = _STEP_SECONDS
    ) -> None:
        inbox = self._inboxes[shop.shop_id]
        inbox.wait_for(arrived, what=f"{what} for {shop.shop_id}", timeout_s=timeout_s)


def _answered_again(shop: Shop, inbox: Inbox) -> Callable[[], bool]:
    return lambda: check_repeats(shop, inbox).ok


def _order_messages(shop: Shop) -> Iterator[tuple[Message, Sequence[Order]]]:
    for order in shop.single_orders:
        yield clients.single(clients.order_paid(order)), [order]
    for orders in shop.batches:
        yield clients.batch([clients.order_paid(order) for order in orders]), orders
