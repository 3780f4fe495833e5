"""
What the audience sees: sentences about what happens, and one short table of where the money is.

On a terminal the table stands below the sentences and updates in place; elsewhere, in a log of a CI run for
instance, it is a line per shop from time to time.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ledger.accounts import AccountKind
from ledger.money import format_minor
from ops.demo.clients import Inbox
from ops.demo.scenario import Shop
from schemas.currencies import CURRENCY_DIGITS

_PLAIN_WIDTH = 100
_UPDATES_PER_SECOND = 8
_PLAIN_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Heap:
    """So many orders or payouts in a state, and their money in minor units."""

    count: int
    amount: int


class ShopView:
    """What a shop knows about its money from what it has sent and heard."""

    def __init__(self, shop: Shop, inbox: Inbox) -> None:
        self.shop = shop
        self.inbox = inbox
        self._amounts = {order.order_id: order.amount for order in shop.orders}
        self._announced: set[str] = set()

    def note_announced(self, order_ids: Sequence[str]) -> None:
        self._announced |= set(order_ids)

    @property
    def announced(self) -> int:
        return len(self._announced)

    def states(self) -> dict[str, Heap]:
        """Return where the money is: each order and payout counts in one state only."""
        held = {one.data["order_id"]: one.data["holds"] for one in self.inbox.of("order.held")}
        released = {one.data["hold_id"]: one.data for one in self.inbox.of("hold.released")}
        waiting = self._announced - held.keys()
        open_holds = {
            order_id: [hold["amount"] for hold in holds if hold["hold_id"] not in released]
            for order_id, holds in held.items()
        }
        accepted = self._payouts("withdrawal.accepted")
        settled = self._payouts("payout.settled")
        failed = self._payouts("payout.failed")
        under_way = {key: amount for key, amount in accepted.items() if key not in settled | failed}
        gone = sum(under_way.values()) + sum(settled.values())
        return {
            "announced": Heap(len(waiting), sum(self._amounts[id_] for id_ in waiting)),
            "protected": Heap(
                sum(1 for amounts in open_holds.values() if amounts),
                sum(sum(amounts) for amounts in open_holds.values()),
            ),
            "withdrawable": Heap(
                sum(1 for amounts in open_holds.values() if not amounts),
                sum(one["amount"] for one in released.values()) - gone,
            ),
            "on its way to sellers": Heap(len(under_way), sum(under_way.values())),
            "paid out": Heap(len(settled), sum(settled.values())),
        }

    def _payouts(self, type_: str) -> dict[str, int]:
        return {one.data["withdrawal_id"]: one.data["amount"] for one in self.inbox.of(type_)}


class Display:
    """Prints for people or for a log, whichever reads it."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=_PLAIN_WIDTH)
        self._console = console
        self._begun_at = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._begun_at

    def title(self, text: str) -> None:
        self._console.print(f"\n[bold]{escape(text)}[/bold]\n", soft_wrap=True)

    def say(self, text: str, *, style: str = "") -> None:
        """Say what happens, with the seconds since the beginning."""
        opening, closing = (f"[{style}]", f"[/{style}]") if style else ("", "")
        self._console.print(
            f"[dim]{self.elapsed_seconds:5.1f} s[/dim]  {opening}{escape(text)}{closing}", soft_wrap=True
        )

    def result(self, name: str, *, ok: bool, detail: str) -> None:
        mark = "[green]ok[/green]   " if ok else "[bold red]WRONG[/bold red]"
        self._console.print(f"  {mark}  {escape(name)}", soft_wrap=True)
        if detail and not ok:
            self._console.print(f"         {escape(detail)}", soft_wrap=True)

    def plain(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)

    def failure(self, text: str) -> None:
        self._console.print(f"\n[bold red]{escape(text)}[/bold red]", soft_wrap=True)

    @contextmanager
    def watching(self, views: Sequence[ShopView]) -> Iterator[None]:
        """Show where the money is while the body runs, and once more at its end."""
        if self._console.is_terminal:
            with Live(
                get_renderable=lambda: states_table(views),
                console=self._console,
                refresh_per_second=_UPDATES_PER_SECOND,
            ):
                yield
            return
        stopping = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(views, stopping), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            stopping.set()
            ticker.join()
        self._print_table(states_table(views))

    def accounts(self, shops: Sequence[Shop], totals: Mapping[str, Mapping[AccountKind, int]]) -> None:
        """Show the ledger's totals, one column a shop."""
        table = _table("account in the ledger", [f"{shop.shop_id} ({shop.currency})" for shop in shops])
        for kind in AccountKind:
            if any(kind in totals[shop.shop_id] for shop in shops):
                cells = (money(totals[shop.shop_id].get(kind, 0), shop.currency) for shop in shops)
                table.add_row(kind.value, *cells)
        self._print_table(table)

    def _print_table(self, table: RenderableType) -> None:
        if self._console.is_terminal:
            self._console.print(table)
            return
        # Rich pads every line to the table's width; in a log that is noise.
        with self._console.capture() as captured:
            self._console.print(table)
        self.plain("\n".join(line.rstrip() for line in captured.get().rstrip().splitlines()) + "\n")

    def _tick(self, views: Sequence[ShopView], stopping: threading.Event) -> None:
        said: dict[str, str] = {}
        while not stopping.wait(_PLAIN_SECONDS):
            for view in views:
                states = ", ".join(
                    f"{heap.count:,} {name} ({money(heap.amount, view.shop.currency)})"
                    for name, heap in view.states().items()
                    if heap.count
                )
                if states and said.get(view.shop.shop_id) != states:
                    said[view.shop.shop_id] = states
                    self.say(f"{view.shop.shop_id}: {states}", style="dim")


def states_table(views: Sequence[ShopView]) -> RenderableType:
    """Build the one table: a row a state, two columns a shop."""
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("where the money is")
    for view in views:
        table.add_column(view.shop.shop_id, justify="right", min_width=8)
        table.add_column(view.shop.currency, justify="right", min_width=12)
    columns = [view.states() for view in views]
    for state in columns[0]:
        cells: list[str] = []
        for view, states in zip(views, columns, strict=True):
            cells += [f"{states[state].count:,}", money(states[state].amount, view.shop.currency)]
        table.add_row(state, *cells)
    return table


def money(amount_minor: int, currency: str) -> str:
    """Show an amount with its currency's decimals and separated thousands."""
    whole, point, decimals = format_minor(amount_minor, CURRENCY_DIGITS[currency]).partition(".")
    return f"{int(whole):,}{point}{decimals}"


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", min_width=16)
    return table
