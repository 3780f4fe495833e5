from collections.abc import Mapping

import pytest

from infra.rabbitmq.messages import (
    DELIVER_EXCHANGE,
    MAX_REASON_CHARACTERS,
    Delivery,
    dead_letter_message,
    delivery_from_wire,
    retry_message,
)


def _arrived(
    headers: Mapping[str, object], *, exchange: str = DELIVER_EXCHANGE, routing_key: str = "payment.intake"
) -> Delivery:
    return delivery_from_wire(
        "payment.intake",
        exchange,
        routing_key,
        b"{}",
        content_type="application/json",
        type_="order.paid",
        headers=headers,
        message_id="m-1",
        redelivered=False,
    )


def test_the_attempt_count_is_believed_from_our_own_exchange_only() -> None:
    headers = {"holdfast-attempt": 3}
    assert _arrived(headers).attempt == 3
    assert _arrived(headers, exchange="holdfast.inbound").attempt == 0
    assert _arrived(headers, exchange="").attempt == 0


@pytest.mark.parametrize("hostile", [True, -1, 1.5, "7", None, [], {}])
def test_an_attempt_count_that_is_no_count_is_none(hostile: object) -> None:
    assert _arrived({"holdfast-attempt": hostile}).attempt == 0


def test_a_retry_shows_where_the_message_first_came_from() -> None:
    """The envelope check compares routing key and event type; the lanes' routing key says neither."""
    first = _arrived({"webhook-id": "w"}, exchange="holdfast.inbound", routing_key="order.paid")
    retry = retry_message(first, delay_ms=2000)
    again = _arrived(retry.headers, routing_key=retry.routing_key)
    assert (again.exchange, again.routing_key, again.attempt) == ("holdfast.inbound", "order.paid", 1)
    assert again.headers["webhook-id"] == "w"
    twice = _arrived(retry_message(again, delay_ms=2000).headers)
    assert (twice.exchange, twice.routing_key, twice.attempt) == ("holdfast.inbound", "order.paid", 2)


@pytest.mark.parametrize(
    "header",
    ["CC", "BCC", "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "x-opt-a"],
)
def test_headers_that_the_broker_acts_upon_are_never_sent_on(header: str) -> None:
    delivery = _arrived({header: ["somebody.elses.queue"], "x-request-id": "kept"})
    for message in (retry_message(delivery, delay_ms=1000), dead_letter_message(delivery, reason="r")):
        assert header not in message.headers
        assert message.headers["x-request-id"] == "kept"


def test_a_stranger_cannot_write_our_headers() -> None:
    delivery = _arrived({"holdfast-reason": "forged", "holdfast-anything": 1}, exchange="holdfast.inbound")
    retry = retry_message(delivery, delay_ms=1000)
    assert "holdfast-reason" not in retry.headers
    assert "holdfast-anything" not in retry.headers


def test_a_dead_letter_keeps_the_message_and_says_why() -> None:
    delivery = _arrived({"webhook-signature": "v1,x", "holdfast-attempt": 7})
    message = dead_letter_message(delivery, reason="x" * 10_000)
    assert (message.exchange, message.routing_key) == ("holdfast.dead_letters", "payment.intake.XQ")
    assert (message.body, message.type, message.message_id) == (b"{}", "order.paid", "m-1")
    assert message.headers["webhook-signature"] == "v1,x"
    assert message.headers["holdfast-queue"] == "payment.intake"
    assert message.headers["holdfast-attempt"] == 7
    assert len(str(message.headers["holdfast-reason"])) == MAX_REASON_CHARACTERS


def test_properties_that_are_not_text_are_none() -> None:
    delivery = delivery_from_wire(
        "q",
        "",
        "q",
        b"",
        content_type=b"\xff",
        type_=b"\xfe",
        headers=None,
        message_id=b"\xfd",
        redelivered=True,
    )
    assert (delivery.content_type, delivery.type, delivery.message_id) == (None, None, None)
    assert delivery.headers == {}
