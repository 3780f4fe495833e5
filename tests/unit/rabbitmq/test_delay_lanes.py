"""The ladder is simulated from the topology as data: what a topic exchange would do, without a broker."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.rabbitmq import delay_lanes, topology
from infra.rabbitmq.delay_lanes import MAX_DELAY_MS, DelayTooLong, ladder_digits, route
from infra.rabbitmq.messages import command_message

DAY_SECONDS = 86_400
WANTED = topology.topology(DAY_SECONDS)
EXCHANGES = {exchange.name: exchange for exchange in WANTED.exchanges}
QUEUES = {queue.name: queue for queue in WANTED.queues}
MAX_HOPS = 20


def _matches(pattern: str, routing_key: str) -> bool:
    expression = "^" + re.escape(pattern).replace(r"\*", r"[^.]+").replace(r"\.\#", r"(\..+)?") + "$"
    return re.match(expression.replace(r"\#", ".*"), routing_key) is not None


def _queues_reached(exchange: str, routing_key: str) -> set[str]:
    reached: set[str] = set()
    for binding in WANTED.bindings:
        if binding.source != exchange:
            continue
        if EXCHANGES[exchange].type == "fanout" or _matches(binding.routing_key, routing_key):
            if binding.to_exchange:
                reached |= _queues_reached(binding.destination, routing_key)
            else:
                reached.add(binding.destination)
    return reached


def _travel(exchange: str, routing_key: str) -> tuple[str, int, list[str]]:
    """Where a message ends, after how many milliseconds, through which lanes."""
    waited_ms, lanes = 0, []
    while True:
        (queue_name,) = _queues_reached(exchange, routing_key)
        arguments = QUEUES[queue_name].arguments
        if "x-message-ttl" not in arguments:
            return queue_name, waited_ms, lanes
        waited_ms += int(str(arguments["x-message-ttl"]))
        lanes.append(queue_name)
        exchange = str(arguments["x-dead-letter-exchange"])


@given(st.integers(1, MAX_DELAY_MS), st.sampled_from(sorted(topology.WORK_QUEUES)))
def test_any_delay_up_to_30_days_is_waited_rounded_up_to_whole_seconds(
    delay_ms: int, queue_name: str
) -> None:
    reached, waited_ms, lanes = _travel(*route(queue_name, delay_ms))
    assert reached == queue_name
    assert waited_ms == math.ceil(delay_ms / 1000) * 1000
    assert len(lanes) <= MAX_HOPS
    assert len(set(lanes)) == len(lanes), "RabbitMQ drops a message that expires twice in one queue"


@pytest.mark.parametrize("delay_ms", [1, 999, 1000, 1001, MAX_DELAY_MS - 1, MAX_DELAY_MS])
def test_boundary_delays_are_never_early(delay_ms: int) -> None:
    _, waited_ms, _ = _travel(*route("escrow.release", delay_ms))
    assert delay_ms <= waited_ms < delay_ms + 1000


def test_a_delay_above_30_days_is_refused() -> None:
    with pytest.raises(DelayTooLong):
        command_message("escrow.release", "release_hold", b"{}", delay_ms=MAX_DELAY_MS + 1)


def test_a_negative_delay_is_refused() -> None:
    with pytest.raises(ValueError, match="past"):
        route("escrow.release", -1)


def test_a_delay_longer_than_the_ladder_is_no_silent_remainder() -> None:
    with pytest.raises(ValueError, match="ladder"):
        ladder_digits(3**14)


@pytest.mark.parametrize("days", range(3, 8))
@pytest.mark.parametrize("early_ms", [0, 1, 999])
def test_a_protection_period_waits_in_its_own_lane_in_one_hop(days: int, early_ms: int) -> None:
    period_ms = days * DAY_SECONDS * 1000
    exchange, routing_key = route("escrow.release", period_ms - early_ms, day_seconds=DAY_SECONDS)
    assert _travel(exchange, routing_key) == ("escrow.release", period_ms, [f"delay.{period_ms}"])


def test_a_remainder_of_a_period_walks_down_the_ladder() -> None:
    """The period's lane would bring it a second late or more."""
    exchange, _ = route("escrow.release", 3 * DAY_SECONDS * 1000 - 1000, day_seconds=DAY_SECONDS)
    assert exchange.startswith("holdfast.delay.rung.")


@given(st.integers(1, 86_400), st.integers(1, 86_400))
def test_lanes_of_different_lengths_never_share_a_name(one_day: int, other_day: int) -> None:
    """A queue's time to live cannot be changed: the same name with another length is a queue that clashes."""
    ladder = [delay_lanes.ladder_lane(rung, digit) for rung in range(delay_lanes.RUNGS) for digit in (1, 2)]
    by_name: dict[str, delay_lanes.Lane] = {}
    for lane in [*ladder, *delay_lanes.period_lanes(one_day), *delay_lanes.period_lanes(other_day)]:
        assert by_name.setdefault(lane.queue_name, lane) == lane


def test_an_undelayed_command_goes_straight_to_its_queue() -> None:
    assert _travel(*route("escrow.hold", 0)) == ("escrow.hold", 0, [])
