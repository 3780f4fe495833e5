"""A message that is refused for its signature is refused for good: by the keys there were when it came."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gates import Gate, order_from

from infra.rabbitmq import ingress as ingress_module


@pytest.mark.parametrize("known_before", ["no key", "another key", "the key without the scope"])
def test_a_key_is_good_from_the_moment_that_it_is_added(gate: Gate, known_before: str) -> None:
    shop, key = gate.a_shop(), Ed25519PrivateKey.generate()
    if known_before == "another key":
        gate.add_key(shop, Ed25519PrivateKey.generate())
    elif known_before == "the key without the scope":
        gate.add_key(shop, key, scope="sellers")
    assert gate.admits(order_from(shop, key)) == 0
    gate.add_key(shop, key)
    assert gate.admits(order_from(shop, key)) == 1


def test_a_batch_of_forgeries_is_one_question_and_no_signature_is_tried_twice(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    real = ingress_module.verify

    def counted(**asked: object) -> object:
        nonlocal tried
        tried += 1
        return real(**asked)  # type: ignore[arg-type]

    monkeypatch.setattr(ingress_module, "verify", counted)
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    shops = [gate.a_shop() for _ in range(5)]
    for shop in shops:
        gate.add_key(shop, key)
    honest = [order_from(shop, key) for shop in shops]
    assert gate.admits(*honest) == len(honest)
    forged = [order_from(shop, stranger) for shop in shops for _ in range(20)]
    asked, tried = gate.queries, 0
    assert gate.admits(*honest, *forged) == len(honest)
    assert gate.queries - asked == 1
    assert tried == len(honest) + len(forged)
