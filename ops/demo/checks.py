"""What happened against what had to happen: pure comparisons, each with a sentence about what is off."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ledger.accounts import AccountKind
from ops.demo.clients import Event, Inbox
from ops.demo.scenario import (
    Balance,
    Outcome,
    Shop,
    Withdrawal,
    expected_accounts,
    expected_balances,
)

_SHOWN = 3
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, whether it was kept, and if not what is off."""

    name: str
    problems: Sequence[str]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def detail(self) -> str:
        more = len(self.problems) - _SHOWN
        return "; ".join(self.problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def check_holds(shop: Shop, inbox: Inbox) -> Check:
    """Every order is held once, for its sellers and amounts."""
    answers: dict[str, list[Event]] = {}
    for event in inbox.of("order.held"):
        answers.setdefault(event.data["order_id"], []).append(event)
    problems = [f"{order_id} was never announced, yet held" for order_id in answers.keys() - _ids(shop)]
    for order in shop.orders:
        events = answers.get(order.order_id, [])
        if len(events) != 1:
            problems.append(f"{order.order_id} was held {len(events)} times")
            continue
        held = {hold["seller_id"]: hold["amount"] for hold in events[0].data["holds"]}
        if held != {split.seller_id: split.amount for split in order.splits}:
            problems.append(f"{order.order_id} was held as {held}")
    holds = sum(len(order.splits) for order in shop.orders)
    return Check(
        f"{shop.shop_id}: {len(shop.orders):,} orders held exactly once, as {holds:,} holds", problems
    )


def check_releases(shop: Shop, inbox: Inbox) -> Check:
    """Every hold that may be released was, once and never early; the others were not."""
    due = {
        hold["hold_id"]: (event.data["order_id"], _time(event.data["release_at"]))
        for event in inbox.of("order.held")
        for hold in event.data["holds"]
    }
    may_go = {order.order_id for order in shop.orders if shop.is_released(order)}
    released: dict[str, int] = {}
    problems: list[str] = []
    for event in inbox.of("hold.released"):
        hold_id = event.data["hold_id"]
        released[hold_id] = released.get(hold_id, 0) + 1
        order_id, release_at = due.get(hold_id, ("an unknown order", _NEVER))
        if order_id not in may_go:
            problems.append(f"a hold of {order_id} was released without the bank's credit")
        elif _time(event.data["released_at"]) < release_at:
            problems.append(f"a hold of {order_id} was released before {release_at.isoformat()}")
    problems += [
        f"a hold of {order_id} was released {released.get(hold_id, 0)} times"
        for hold_id, (order_id, _) in due.items()
        if order_id in may_go and released.get(hold_id, 0) != 1
    ]
    kept = len(shop.orders) - len(may_go)
    but = f"; the {kept} that the bank never credited stays protected" if kept else ""
    return Check(f"{shop.shop_id}: {len(may_go):,} orders released, none early{but}", problems)


def check_repeats(shop: Shop, inbox: Inbox) -> Check:
    """A repeated order got its first answer again, under its first id."""
    answers = {event.data["order_id"]: event.id for event in inbox.of("order.held")}
    repeated = [order.order_id for order in shop.repeated_orders]
    problems = [
        f"{order_id} was sent again and got no second answer"
        for order_id in repeated
        if order_id not in answers or inbox.deliveries[answers[order_id]] <= 1
    ]
    return Check(f"{shop.shop_id}: {len(repeated)} exact duplicates changed nothing", problems)


def check_refusals(shop: Shop, inbox: Inbox, expected: Mapping[str, str]) -> Check:
    """Compare the refused events with `expected`: the reason by the id of the event that was refused."""
    got = {event.data["event_id"]: event.data["reason"] for event in inbox.of("order.rejected")}
    problems = [] if got == dict(expected) else [f"refused were {got}, not {dict(expected)}"]
    return Check(f"{shop.shop_id}: refused with a reply: {_listed(expected.values())}", problems)


def check_signatures(shop: Shop, inbox: Inbox) -> Check:
    count = sum(inbox.deliveries.values())
    problems = [f"{inbox.forged} events had no valid signature"] if inbox.forged else []
    return Check(f"{shop.shop_id}: Holdfast's signature is right on all {count:,} events", problems)


def check_quarantine(found: Mapping[str, str | None], expected: Mapping[str, str]) -> Check:
    """Compare the reasons under which the messages lie in quarantine, by what is wrong with them."""
    problems = [
        f"the {what} is quarantined as {found.get(what)}, not as {reason}"
        for what, reason in expected.items()
        if found.get(what) != reason
    ]
    return Check(f"quarantined without a reply: {_listed(expected)}", problems)


def check_withdrawals(shop: Shop, inbox: Inbox) -> Check:
    """Every withdrawal ended once, and as it had to."""
    problems = [
        f"{withdrawal.withdrawal_id} ended as {ended}, not as {withdrawal.outcome.value}"
        for withdrawal in shop.withdrawals
        if (ended := outcomes_of(withdrawal, inbox)) != [withdrawal.outcome.value]
    ]
    return Check(
        f"{shop.shop_id}: withdrawals: {_listed(w.outcome.value for w in shop.withdrawals)}", problems
    )


def check_bank(
    shops: Iterable[Shop],
    inboxes: Mapping[str, Inbox],
    journal: Sequence[Mapping[str, Any]],
    sent_back: Sequence[tuple[int, str]],
) -> Check:
    """The bank made one transfer for each settled payout and refund, for its amount, and no other."""
    made: dict[str, list[tuple[int, str]]] = {}
    for entry in journal:
        if entry["kind"] == "transfer_settled":
            made.setdefault(entry["end_to_end_id"], []).append((entry["amount"], entry["currency"]))
    settled = {
        event.data["end_to_end_id"]: [(event.data["amount"], event.data["currency"])]
        for shop in shops
        for event in inboxes[shop.shop_id].of("payout.settled")
    }
    payouts = {id_: amounts for id_, amounts in made.items() if id_ in settled}
    others = sorted(amount for id_, amounts in made.items() if id_ not in settled for amount in amounts)
    problems = [f"the bank made {payouts}, Holdfast reports {settled}"] if payouts != settled else []
    if others != sorted(sent_back):
        problems.append(f"the bank also made {others}, refunds are {sorted(sent_back)}")
    name = f"the bank's journal: {len(settled)} payouts and {len(sent_back)} refunds, each made once"
    return Check(name, problems)


def check_balances(shop: Shop, found: Mapping[str, Balance]) -> Check:
    expected = expected_balances(shop)
    problems = [
        f"{seller_id} has {found.get(seller_id)}, not {expected.get(seller_id)}"
        for seller_id in sorted(expected.keys() | found.keys())
        if found.get(seller_id) != expected.get(seller_id)
    ]
    return Check(f"{shop.shop_id}: balances of {len(expected)} sellers equal the computed ones", problems)


def check_accounts(shop: Shop, found: Mapping[AccountKind, int]) -> Check:
    expected = expected_accounts(shop)
    problems = [
        f"{kind.value} is {found.get(kind, 0)}, not {expected.get(kind, 0)}"
        for kind in AccountKind
        if found.get(kind, 0) != expected.get(kind, 0)
    ]
    return Check(f"{shop.shop_id}: every account of the ledger equals the computed one", problems)


def check_audit(*, ok: bool, checks: Sequence[Mapping[str, Any]]) -> Check:
    problems = [
        f"{check['name']}: {check.get('violations', '?')} violations" for check in checks if not check["ok"]
    ]
    if not ok and not problems:
        problems = ["it failed without naming an invariant"]
    return Check(f"`holdfast audit`: {len(checks)} invariants hold", problems)


def outcomes_of(withdrawal: Withdrawal, inbox: Inbox) -> list[str]:
    """Return how a withdrawal ended, by what its shop has heard; more than one entry is one too many."""
    ended = {
        "payout.settled": Outcome.SETTLED,
        "payout.failed": Outcome.REJECTED_BY_BANK,
    }
    return [
        ended[type_].value if type_ in ended else str(event.data["reason"])
        for type_ in ("withdrawal.rejected", *ended)
        for event in inbox.of(type_)
        if event.data["withdrawal_id"] == withdrawal.withdrawal_id
    ]


def _ids(shop: Shop) -> set[str]:
    return {order.order_id for order in shop.orders}


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _listed(names: Iterable[str] | Collection[str]) -> str:
    return ", ".join(dict.fromkeys(names))
