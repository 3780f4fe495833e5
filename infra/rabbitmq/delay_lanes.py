"""
Delays that live in the broker, not in a worker's memory.

A lane is a quorum queue with a time to live, no consumer, and a dead-letter exchange: what enters it comes
out exactly that much later, in order, across restarts of everything. Two kinds exist.

**The ladder** makes any delay of whole seconds from lanes of 3^k seconds and 2 x 3^k seconds, k = 0..13. A
delay is written in base 3, one digit a rung, and the digits are the first words of the routing key, highest
first; the last words name the target queue. Each rung's exchange looks at its own digit only: 1 and 2 lead
into a lane which dead-letters into the next lower rung, 0 leads there at once. So a delay takes at most 14
hops, uses each rung once at most, and nothing but the broker's clock decides.

**Protection periods** (3 to 7 days) have a lane each, because nearly every long delay is one of them: one hop
instead of a dozen.

A lane's name carries its milliseconds: the time to live of a queue cannot be changed, so another
length is another queue, and the old one drains by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

DELIVER_EXCHANGE = "holdfast.deliver"

RUNGS = 14
BASE = 3
MAX_DELAY_MS = 30 * 86_400 * 1000
PROTECTION_PERIOD_DAYS = range(3, 8)
_MS = 1000


class DelayTooLong(ValueError):
    """A delay above 30 days was asked for; nothing in the workflow waits that long in the broker."""

    def __init__(self, delay_ms: int) -> None:
        super().__init__(f"a delay of {delay_ms} ms is above the maximum of {MAX_DELAY_MS} ms")
        self.delay_ms = delay_ms


@dataclass(frozen=True, slots=True)
class Lane:
    """One queue in which messages wait for the same time."""

    queue_name: str
    delay_ms: int
    dead_letter_exchange: str

    def arguments(self) -> Mapping[str, object]:
        return {
            "x-queue-type": "quorum",
            "x-message-ttl": self.delay_ms,
            "x-dead-letter-exchange": self.dead_letter_exchange,
            # Without these two a message can vanish between a lane and where it leads to.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


def rung_exchange(rung: int) -> str:
    """The exchange that looks at the digit of one rung; below the lowest is delivery."""
    return DELIVER_EXCHANGE if rung < 0 else f"holdfast.delay.rung.{rung}"


def rung_binding_key(rung: int, digit: int) -> str:
    """The topic pattern that matches one digit of one rung."""
    return ".".join(["*"] * (RUNGS - 1 - rung) + [str(digit), "#"])


def ladder_lane(rung: int, digit: int) -> Lane:
    """The lane of one digit of one rung."""
    delay_ms = BASE**rung * digit * _MS
    return Lane(f"delay.rung.{delay_ms}", delay_ms, rung_exchange(rung - 1))


def period_exchange(delay_ms: int) -> str:
    """The exchange that feeds the lane of one protection period."""
    return f"holdfast.delay.{delay_ms}"


def period_lanes(day_seconds: int) -> list[Lane]:
    """The lanes of the protection periods for this length of a day."""
    return [
        Lane(f"delay.{delay_ms}", delay_ms, DELIVER_EXCHANGE)
        for delay_ms in (days * day_seconds * _MS for days in PROTECTION_PERIOD_DAYS)
    ]


def delivery_binding_keys(queue_name: str) -> tuple[str, str]:
    """What a work queue is bound with: its name, and its name behind the digits of a finished delay."""
    return queue_name, ".".join(["*"] * RUNGS + [queue_name])


def route(queue_name: str, delay_ms: int, *, day_seconds: int | None = None) -> tuple[str, str]:
    """
    Exchange and routing key that bring a message to a queue after a delay.

    Rounded up to whole seconds. A delay that ends less than a second before a protection period's does goes
    into that period's lane, which is as late as rounding up would make it.

    Raises:
        DelayTooLong: above 30 days.
        ValueError: a negative delay.
    """
    if delay_ms == 0:
        return DELIVER_EXCHANGE, queue_name
    if delay_ms < 0:
        raise ValueError(f"a delay of {delay_ms} ms lies in the past")
    if delay_ms > MAX_DELAY_MS:
        raise DelayTooLong(delay_ms)
    if day_seconds is not None:
        for days in PROTECTION_PERIOD_DAYS:
            period_ms = days * day_seconds * _MS
            if period_ms - _MS < delay_ms <= period_ms <= MAX_DELAY_MS:
                return period_exchange(period_ms), queue_name
    seconds = -(-delay_ms // _MS)
    digits = ladder_digits(seconds)
    # Enter at the highest rung in use: the zeros above it need no exchange to pass them on.
    first = RUNGS - 1 - next(position for position, digit in enumerate(digits) if digit)
    return rung_exchange(first), ".".join([*map(str, digits), queue_name])


def ladder_digits(seconds: int) -> list[int]:
    """The delay in base 3, highest digit first, one digit a rung."""
    digits: list[int] = []
    for _ in range(RUNGS):
        seconds, digit = divmod(seconds, BASE)
        digits.append(digit)
    if seconds:
        raise ValueError("the ladder is shorter than this delay")
    return digits[::-1]
