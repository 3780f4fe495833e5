"""
What the demonstration does, and what must come of it to the cent: pure data and arithmetic.

Amounts are minor units. Everything is made from a fixed seed, so every run tells the same story; only the
shops' ids carry a suffix where the database is not the demonstration's own.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ledger.accounts import AccountKind

ORDERS_PER_SHOP = 1_000
SELLERS_PER_SHOP = 25
BATCH_SIZE = 50
# Every shop sends this many orders in batch form and the others one by one.
BATCHED_ORDERS = 400
_DUPLICATES_PER_SHOP = 3
# The place in the list of the order whose money never arrives.
_UNPAID = 40
_SEED = 20_130_128


class Signing(StrEnum):
    """How a shop signs what it publishes."""

    HMAC = "HMAC-SHA256"
    ED25519 = "Ed25519"


class Funding(StrEnum):
    """What a release needs: the bank's credit, or the shop's word alone."""

    CONFIRMED = "confirmed"
    ANNOUNCED = "announced"


class Outcome(StrEnum):
    """How a withdrawal must end."""

    SETTLED = "settled"
    REJECTED_BY_BANK = "rejected by the bank"
    WRONG_PASSWORD = "wrong_password"  # noqa: S105 - the contract's name of a refusal
    INSUFFICIENT_FUNDS = "insufficient_funds"


class BankBehaviour(StrEnum):
    """What the simulated bank is told to do with transfers to a destination."""

    SETTLE = "settle"
    REJECT = "reject"
    TIME_OUT_AFTER_ACCEPTING = "time_out_after_accepting"


@dataclass(frozen=True, slots=True)
class Split:
    """One seller's share of an order."""

    seller_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class Order:
    """One order as its shop announces it; `credited` says whether the buyer's money ever arrives."""

    shop_id: str
    order_id: str
    buyer_id: str
    currency: str
    splits: tuple[Split, ...]
    bank_reference: str
    protection_days: int | None
    credited: bool = True

    @property
    def amount(self) -> int:
        return sum(split.amount for split in self.splits)

    @property
    def event_id(self) -> str:
        return f"paid-{self.order_id}"


@dataclass(frozen=True, slots=True)
class Seller:
    """A seller who enrols; `behaviour` is the bank's, towards this seller's account."""

    shop_id: str
    seller_id: str
    currency: str
    destination_id: str
    destination: tuple[tuple[str, str], ...]
    password: str = field(repr=False)
    behaviour: BankBehaviour = BankBehaviour.SETTLE


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """One request for money; `told` is what the audience reads about it."""

    seller: Seller
    withdrawal_id: str
    amount: int
    currency: str
    password: str = field(repr=False)
    outcome: Outcome
    told: str


@dataclass(frozen=True, slots=True)
class Shop:
    """A shop, its terms with Holdfast and everything it will send."""

    shop_id: str
    currency: str
    signing: Signing
    funding: Funding
    protection_days: int
    orders: tuple[Order, ...]
    sellers: tuple[Seller, ...]
    withdrawals: tuple[Withdrawal, ...]

    @property
    def single_orders(self) -> tuple[Order, ...]:
        return self.orders[:-BATCHED_ORDERS]

    @property
    def batches(self) -> list[tuple[Order, ...]]:
        batched = self.orders[-BATCHED_ORDERS:]
        return [batched[start : start + BATCH_SIZE] for start in range(0, len(batched), BATCH_SIZE)]

    @property
    def repeated_orders(self) -> tuple[Order, ...]:
        """Those that are sent once more, unchanged."""
        return self.orders[10 : 10 + _DUPLICATES_PER_SHOP]

    @property
    def contested_order(self) -> Order:
        """The one that is sent once more with another amount."""
        return self.orders[20]

    def is_released(self, order: Order) -> bool:
        return order.credited or self.funding is Funding.ANNOUNCED


@dataclass(frozen=True, slots=True)
class Balance:
    """Where one seller's money is."""

    held: int = 0
    available: int = 0
    in_payout: int = 0
    paid_out: int = 0


def build_scenario(suffix: str = "") -> tuple[Shop, Shop]:
    """
    Make the two shops.

    Args:
        suffix: makes shop ids and bank references unlike those of earlier runs on the same database.
    """
    return _lantern(f"lantern{suffix}"), _harbour(f"harbour{suffix}")


def _lantern(shop_id: str) -> Shop:
    """A careful shop: nothing is released that the bank has not confirmed, and one buyer never pays."""
    orders = _orders(shop_id, "EUR", random.Random(_SEED), typical_minor=4_000)  # noqa: S311 - a story, no secret
    orders[_UNPAID] = replace(
        orders[_UNPAID], splits=(Split("s-01", 49_900),), protection_days=None, credited=False
    )
    owners = ("Ada Baker", "Noor Visser", "Emil Brandt")
    ibans = ("DE89370400440532013000", "NL91ABNA0417164300", "AT611904300234573201")
    behaviours = (BankBehaviour.SETTLE, BankBehaviour.TIME_OUT_AFTER_ACCEPTING, BankBehaviour.SETTLE)
    sellers = tuple(
        Seller(
            shop_id,
            f"s-{number:02}",
            "EUR",
            f"{shop_id}-account-{number}",
            (("type", "iban"), ("iban", iban), ("holder_name", owner)),
            f"lantern pass phrase {number}",
            behaviour,
        )
        for number, (owner, iban, behaviour) in enumerate(
            zip(owners, ibans, behaviours, strict=True), start=1
        )
    )
    first, second, third = sellers
    released = _released(orders, Funding.CONFIRMED)
    withdrawals = (
        _withdrawal(first, 1, released["s-01"], Outcome.WRONG_PASSWORD, "with a wrong password"),
        _withdrawal(
            first,
            2,
            released["s-01"] + orders[_UNPAID].amount,
            Outcome.INSUFFICIENT_FUNDS,
            "including the order that the bank never credited",
        ),
        _withdrawal(first, 3, released["s-01"], Outcome.SETTLED, "all that is withdrawable"),
        _withdrawal(second, 4, released["s-02"], Outcome.SETTLED, "while the bank accepts but never answers"),
        _withdrawal(third, 5, released["s-03"] // 2, Outcome.SETTLED, "half of what is withdrawable"),
    )
    return Shop(shop_id, "EUR", Signing.HMAC, Funding.CONFIRMED, 3, tuple(orders), sellers, withdrawals)


def _harbour(shop_id: str) -> Shop:
    """A shop whose payments are guaranteed otherwise, in a currency without decimals."""
    orders = _orders(shop_id, "JPY", random.Random(_SEED + 1), typical_minor=6_000)  # noqa: S311 - a story, no secret
    owners = ("Yamada Hanako", "Sato Kenji")
    behaviours = (BankBehaviour.SETTLE, BankBehaviour.REJECT)
    sellers = tuple(
        Seller(
            shop_id,
            f"s-{number:02}",
            "JPY",
            f"{shop_id}-account-{number}",
            (
                ("type", "bank_account"),
                ("country", "JP"),
                ("bank_code", "0001"),
                ("account_number", f"765432{number}"),
                ("holder_name", owner),
            ),
            f"harbour pass phrase {number}",
            behaviour,
        )
        for number, (owner, behaviour) in enumerate(zip(owners, behaviours, strict=True), start=1)
    )
    first, second = sellers
    released = _released(orders, Funding.ANNOUNCED)
    withdrawals = (
        _withdrawal(first, 1, released["s-01"], Outcome.SETTLED, "all that is withdrawable"),
        _withdrawal(second, 2, released["s-02"], Outcome.REJECTED_BY_BANK, "to an account that is closed"),
    )
    return Shop(shop_id, "JPY", Signing.ED25519, Funding.ANNOUNCED, 4, tuple(orders), sellers, withdrawals)


def _withdrawal(seller: Seller, number: int, amount: int, outcome: Outcome, told: str) -> Withdrawal:
    password = "not the pass phrase" if outcome is Outcome.WRONG_PASSWORD else seller.password
    return Withdrawal(seller, f"w-{number:02}", amount, seller.currency, password, outcome, told)


def _orders(shop_id: str, currency: str, chance: random.Random, *, typical_minor: int) -> list[Order]:
    return [
        Order(
            shop_id=shop_id,
            order_id=f"o-{number:04}",
            buyer_id=f"b-{chance.randrange(500):03}",
            currency=currency,
            splits=_splits(number, chance, typical_minor),
            bank_reference=f"{shop_id}/{number:04}",
            protection_days=_asked_days(number),
        )
        for number in range(1, ORDERS_PER_SHOP + 1)
    ]


def _splits(number: int, chance: random.Random, typical_minor: int) -> tuple[Split, ...]:
    # Most orders have one seller, every fourth has several, a few have many.
    count = 1
    if number % 100 == 0:
        count = 12
    elif number % 4 == 0:
        count = 2 + chance.randrange(4)
    sellers = sorted(chance.sample(range(1, SELLERS_PER_SHOP + 1), count))
    return tuple(
        Split(f"s-{seller:02}", max(1, round(chance.lognormvariate(0, 0.8) * typical_minor)))
        for seller in sellers
    )


def _asked_days(number: int) -> int | None:
    # The long ones come first, so that nobody has to wait for them at the end.
    if number <= 10:  # noqa: PLR2004 - part of the story
        return 7
    return 5 if number <= 100 else None  # noqa: PLR2004 - part of the story


def _released(orders: Iterable[Order], funding: Funding) -> dict[str, int]:
    totals: dict[str, int] = defaultdict(int)
    for order in orders:
        for split in order.splits:
            if order.credited or funding is Funding.ANNOUNCED:
                totals[split.seller_id] += split.amount
    return totals


# --- what must come of it -------------------------------------------------------------------------


def expected_balances(shop: Shop) -> dict[str, Balance]:
    """Compute where each seller's money must be at the end."""
    held: dict[str, int] = defaultdict(int)
    released = _released(shop.orders, shop.funding)
    for order in shop.orders:
        if not shop.is_released(order):
            for split in order.splits:
                held[split.seller_id] += split.amount
    paid_out = _paid_out(shop.withdrawals)
    return {
        seller_id: Balance(
            held=held[seller_id],
            available=released[seller_id] - paid_out[seller_id],
            paid_out=paid_out[seller_id],
        )
        for seller_id in sorted(held.keys() | released.keys())
    }


def expected_accounts(shop: Shop) -> dict[AccountKind, int]:
    """Compute the shop's account totals at the end, each on its normal side."""
    balances = expected_balances(shop).values()
    credited = sum(order.amount for order in shop.orders if order.credited)
    return {
        AccountKind.INCOMING: sum(order.amount for order in shop.orders if not order.credited),
        AccountKind.BANK_CASH: credited - sum(balance.paid_out for balance in balances),
        AccountKind.RECEIVED: 0,
        AccountKind.HELD: sum(balance.held for balance in balances),
        AccountKind.AVAILABLE: sum(balance.available for balance in balances),
        AccountKind.IN_PAYOUT: 0,
    }


def _paid_out(withdrawals: Sequence[Withdrawal]) -> dict[str, int]:
    totals: dict[str, int] = defaultdict(int)
    for withdrawal in withdrawals:
        if withdrawal.outcome is Outcome.SETTLED:
            totals[withdrawal.seller.seller_id] += withdrawal.amount
    return totals
