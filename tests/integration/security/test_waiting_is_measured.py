"""How long a message waited for a worker is told by what its sender signed."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gates import Gate, order_from
from prometheus_client import REGISTRY

from infra.rabbitmq.topology import PAYMENT_INTAKE


def _waits() -> tuple[float, float]:
    """Return how many messages were measured so far, and how long all of them waited."""
    of_queue = {"queue": PAYMENT_INTAKE}
    values = (
        REGISTRY.get_sample_value(f"holdfast_inbound_wait_seconds_{what}", of_queue)
        for what in ("count", "sum")
    )
    count, total = (value or 0.0 for value in values)
    return count, total


def test_a_message_is_measured_when_it_is_first_taken_and_authentic(gate: Gate) -> None:
    shop, key = gate.a_shop(), Ed25519PrivateKey.generate()
    gate.add_key(shop, key)
    count, total = _waits()
    admitted = gate.admits(
        order_from(shop, key, signed_seconds_ago=100),
        # A clock that is ahead has not waited for less than nothing.
        order_from(shop, key, signed_seconds_ago=-50),
        # Neither a retry nor whoever signs what he likes.
        order_from(shop, key, signed_seconds_ago=1_000, attempt=1),
        order_from(shop, Ed25519PrivateKey.generate(), signed_seconds_ago=1_000),
    )
    assert admitted == 3
    measured, waited = _waits()
    assert measured - count == 2
    assert 100 <= waited - total < 130
