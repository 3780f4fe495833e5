import pytest

from infra.rabbitmq import topology
from infra.rabbitmq.delay_lanes import DELIVER_EXCHANGE

WANTED = topology.topology(86_400)
QUEUES = {queue.name: queue.arguments for queue in WANTED.queues}


def test_every_queue_is_a_quorum_queue() -> None:
    assert {arguments["x-queue-type"] for arguments in QUEUES.values()} == {"quorum"}


@pytest.mark.parametrize("name", sorted(topology.WORK_QUEUES))
def test_a_work_queue_loses_nothing_on_the_way_to_its_dead_letter_queue(name: str) -> None:
    arguments = QUEUES[name]
    assert arguments["x-dead-letter-strategy"] == "at-least-once"
    assert arguments["x-overflow"] == "reject-publish", "without it dead-lettering silently is at most once"
    assert arguments["x-dead-letter-exchange"] == ""
    assert arguments["x-dead-letter-routing-key"] in QUEUES
    assert arguments["x-delivery-limit"] == topology.WORK_QUEUE_DELIVERY_LIMIT


def test_dead_letters_quarantine_and_orphans_never_expire_and_are_never_deleted_for_being_redelivered() -> (
    None
):
    for name, arguments in QUEUES.items():
        if name.endswith(".XQ") or name in {"quarantine", "orphans"}:
            assert "x-message-ttl" not in arguments
            assert arguments["x-delivery-limit"] == topology.NO_DELIVERY_LIMIT


def test_no_binding_names_an_object_that_is_not_declared() -> None:
    exchanges = {exchange.name for exchange in WANTED.exchanges}
    for binding in WANTED.bindings:
        assert binding.source in exchanges
        assert binding.destination in (exchanges if binding.to_exchange else QUEUES)


def test_whatever_a_lane_lets_go_has_somewhere_to_go() -> None:
    """A dead-lettered message that no queue takes stays in its lane, and a hundred of them jam it."""
    exchanges = {exchange.name: exchange for exchange in WANTED.exchanges}
    for arguments in QUEUES.values():
        target = arguments.get("x-dead-letter-exchange")
        if target:
            assert exchanges[str(target)].arguments["alternate-exchange"] == topology.ORPHANS_EXCHANGE


def test_an_inbound_message_that_matches_nothing_goes_to_quarantine() -> None:
    inbound = next(one for one in WANTED.exchanges if one.name == topology.INBOUND_EXCHANGE)
    assert inbound.arguments == {"alternate-exchange": topology.UNROUTED_EXCHANGE}
    assert topology.Binding(topology.UNROUTED_EXCHANGE, topology.QUARANTINE_QUEUE, "") in WANTED.bindings


def test_nothing_from_outside_is_routed_by_the_delivery_exchange() -> None:
    """The attempt count is believed on messages that came through it."""
    sources = {binding.source for binding in WANTED.bindings if binding.destination == DELIVER_EXCHANGE}
    assert sources == {"holdfast.delay.rung.0"}


@pytest.mark.parametrize("shop_id", ["", "a.b", "a#", "*", "A", "x" * 65, "shop\n"])
def test_a_shop_id_that_could_widen_its_binding_is_refused(shop_id: str) -> None:
    with pytest.raises(ValueError, match="shop id"):
        topology.shop_queue(shop_id)


def test_a_shops_queue_is_bounded_and_refuses_rather_than_drops() -> None:
    queue, binding = topology.shop_queue("acme")
    assert queue.name == "events.acme"
    assert queue.arguments["x-overflow"] == "reject-publish"
    assert queue.arguments["x-max-length"] == topology.SHOP_QUEUE_MAX_LENGTH
    assert binding == topology.Binding(topology.EVENTS_EXCHANGE, "events.acme", "acme.#")
