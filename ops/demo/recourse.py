"""
A third shop, whose buyers ask for their money back: one wins, one loses, one gets a part.

Its buyers' credits arrive only after they have complained, so that the outcome does not depend on how
fast the machine is: nothing is released before the bank has confirmed it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ledger.accounts import AccountKind
from ops.demo import clients
from ops.demo.checks import Check
from ops.demo.clients import BankClient, Inbox, Message, Publisher
from ops.demo.display import Display, money
from ops.demo.scenario import Balance, Funding, Order, Shop, Signing, Split

_SELLER = "s-01"
_CURRENCY = "EUR"
_STEP_SECONDS = 60.0
_PART_MINOR = 2_000


def build_recourse_shop(suffix: str = "") -> Shop:
    """Return a shop with one order for each way that a complaint can end."""
    shop_id = f"wharf{suffix}"
    return Shop(
        shop_id=shop_id,
        currency=_CURRENCY,
        signing=Signing.ED25519,
        funding=Funding.CONFIRMED,
        protection_days=3,
        orders=tuple(
            Order(
                shop_id=shop_id,
                order_id=order_id,
                buyer_id=f"b-{order_id}",
                currency=_CURRENCY,
                splits=(Split(_SELLER, amount),),
                bank_reference=f"{shop_id}/{order_id}",
                protection_days=None,
            )
            for order_id, amount in (("o-buyer", 4_000), ("o-seller", 6_500), ("o-part", 5_000))
        ),
        sellers=(),
        withdrawals=(),
    )


@dataclass(frozen=True, slots=True)
class RecourseAct:
    """Plays the complaints of one shop and checks what came of them."""

    shop: Shop
    inbox: Inbox
    display: Display

    def complain(self, publisher: Publisher, bank: BankClient) -> None:
        """Announce the orders, dispute two and ask a part of the third back; then the buyers' money comes."""
        for order in self.shop.orders:
            publisher.send(clients.single(clients.order_paid(order)))
        self._await("order.held", len(self.shop.orders))
        publisher.send(self._dispute("d-buyer", "o-buyer"))
        publisher.send(self._dispute("d-seller", "o-seller"))
        part = {"refund_id": "r-part", "order_id": "o-part", "refunds": _back(_PART_MINOR)}
        publisher.send(self._message("refund", "refund.requested", part))
        self._await("dispute.accepted", 2)
        self._await("hold.frozen", 2)
        self._await("refund.accepted", 1)
        bank.credit(self.shop.orders)
        self._await("order.funded", len(self.shop.orders))
        won = {"dispute_id": "d-buyer", "refunds": _back(self._amount("o-buyer"))}
        publisher.send(self._message("won", "dispute.resolved", won))
        publisher.send(self._message("lost", "dispute.resolved", {"dispute_id": "d-seller", "refunds": []}))

    def await_end(self) -> None:
        """Wait for the bank's word on what went back, and for the release of what stays."""
        self._await("refund.settled", 2)
        self._await("hold.unfrozen", 1)
        self._await("hold.released", 2)
        for order_id, what in (
            ("o-buyer", "disputed, won by the buyer: all of it went back through the bank"),
            ("o-seller", "disputed, won by the seller: unfrozen and released at its time"),
            ("o-part", f"{money(_PART_MINOR, _CURRENCY)} {_CURRENCY} refunded, the rest released"),
        ):
            amount = f"{money(self._amount(order_id), _CURRENCY)} {_CURRENCY}"
            self.display.say(f"{self.shop.shop_id}/{order_id} {amount} {what}")

    @property
    def sent_back(self) -> list[tuple[int, str]]:
        """What the bank must have returned to buyers: amount and currency of each."""
        return [(self._amount("o-buyer"), _CURRENCY), (_PART_MINOR, _CURRENCY)]

    def check(self, balances: Mapping[str, Balance], accounts: Mapping[AccountKind, int]) -> list[Check]:
        """Compare with what the complaints must have come to."""
        stays = self._amount("o-seller") + self._amount("o-part") - _PART_MINOR
        wanted = Balance(held=0, available=stays, in_payout=0, paid_out=0)
        found = {
            "refunded": sorted(event.data["amount"] for event in self.inbox.of("hold.refunded")),
            "released": sorted(event.data["amount"] for event in self.inbox.of("hold.released")),
            "unfrozen": [event.data["amount"] for event in self.inbox.of("hold.unfrozen")],
        }
        expected = {
            "refunded": sorted(amount for amount, _ in self.sent_back),
            "released": sorted([self._amount("o-seller"), self._amount("o-part") - _PART_MINOR]),
            "unfrozen": [self._amount("o-seller")],
        }
        cents = {kind: total for kind, total in accounts.items() if total}
        cents_wanted = {AccountKind.BANK_CASH: stays, AccountKind.AVAILABLE: stays}
        name = self.shop.shop_id
        return [
            Check(
                f"{name}: a dispute won by the buyer, one by the seller, a partial refund",
                [] if found == expected else [f"events say {found}, not {expected}"],
            ),
            Check(
                f"{name}: what went back left the ledger, what stays is withdrawable",
                []
                if balances == {_SELLER: wanted} and cents == cents_wanted
                else [f"balances {balances}, accounts {cents}, not {wanted} and {cents_wanted}"],
            ),
            Check(
                f"{name}: Holdfast's signature is right on all {len(self.inbox.deliveries):,} events",
                [] if not self.inbox.forged else [f"{self.inbox.forged} wrong signatures"],
            ),
        ]

    def _amount(self, order_id: str) -> int:
        return next(order.amount for order in self.shop.orders if order.order_id == order_id)

    def _dispute(self, dispute_id: str, order_id: str) -> Message:
        data = {"dispute_id": dispute_id, "order_id": order_id, "reason": "not as described"}
        return self._message(dispute_id, "dispute.opened", data)

    def _message(self, event_id: str, type_: str, data: Mapping[str, object]) -> Message:
        return clients.single(clients.event(self.shop.shop_id, event_id, type_, data))

    def _await(self, type_: str, count: int) -> None:
        self.inbox.wait_for(
            lambda: self.inbox.count(type_) >= count,
            what=f"{count} {type_} for {self.shop.shop_id}",
            timeout_s=_STEP_SECONDS,
        )


def _back(amount_minor: int) -> list[dict[str, object]]:
    return [{"seller_id": _SELLER, "amount": amount_minor}]
