"""Every way in which a real broker can differ from the topology, found by name."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from rabbitmq_support import DAY_SECONDS, amqp

from infra.local.rabbitmq import PrivateRabbitMQ
from infra.rabbitmq import topology
from infra.rabbitmq.management import ManagementUnavailable
from infra.rabbitmq.topology import Drift
from infra.rabbitmq.verification import Verdict, judge_broker

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture(scope="module")
def node(test_servers: Any) -> PrivateRabbitMQ:
    """The run's own broker: one from outside need not have the plugin."""
    assert test_servers.rabbitmq is not None, "run these without HOLDFAST_BROKER_URL"
    node: PrivateRabbitMQ = test_servers.rabbitmq
    return node


@pytest.fixture(scope="module")
def management_url(node: PrivateRabbitMQ) -> str:
    assert node.management_url is not None
    return node.management_url


@pytest.fixture(scope="module")
def verified_url(make_vhost: Callable[[], str]) -> str:
    url = make_vhost()
    topology.apply(url, DAY_SECONDS)
    topology.declare_shop_queue(url, "acme")
    return url


@pytest.fixture
def judge(verified_url: str, management_url: str) -> Iterator[Callable[[], Verdict]]:
    """Return the verification of a vhost that was as it should be, and is again after the test."""

    def judge_it() -> Verdict:
        return judge_broker(verified_url, management_url, DAY_SECONDS)

    yield judge_it
    topology.apply(verified_url, DAY_SECONDS)
    topology.declare_shop_queue(verified_url, "acme")
    assert judge_it() == Verdict((), ())


def found(verdict: Verdict, drift: Drift) -> list[str]:
    assert {finding.drift for finding in verdict.findings} <= {drift}, verdict
    assert not verdict.not_checked
    return [finding.name for finding in verdict.findings]


def test_a_broker_as_it_should_be_has_no_finding(judge: Callable[[], Verdict]) -> None:
    assert judge() == Verdict((), ())


def test_a_missing_binding_of_each_kind_is_found(judge: Callable[[], Verdict], verified_url: str) -> None:
    with amqp(verified_url) as channel:
        channel.queue_unbind("payment.intake", "holdfast.inbound", "order.paid")
        channel.queue_unbind("delay.rung.1000", "holdfast.delay.rung.0", "*.*.*.*.*.*.*.*.*.*.*.*.*.1.#")
        channel.queue_unbind("events.acme", "holdfast.events", "acme.#")
        channel.exchange_unbind("holdfast.deliver", "holdfast.delay.rung.0", topology_key(0))
    missing = found(judge(), Drift.MISSING_BINDING)
    assert "holdfast.inbound -order.paid-> payment.intake" in missing
    assert "holdfast.events -acme.#-> events.acme" in missing
    assert f"holdfast.delay.rung.0 -{topology_key(0)}-> holdfast.deliver" in missing
    assert any(name.endswith("-> delay.rung.1000") for name in missing)


def topology_key(rung: int) -> str:
    wanted = topology.topology(DAY_SECONDS)
    return next(
        binding.routing_key
        for binding in wanted.bindings
        if binding.source == f"holdfast.delay.rung.{rung}" and binding.to_exchange
    )


@pytest.mark.parametrize("every", topology.topology(DAY_SECONDS).bindings[:3], ids=str)
def test_each_binding_is_looked_for(
    judge: Callable[[], Verdict], verified_url: str, every: topology.Binding
) -> None:
    with amqp(verified_url) as channel:
        channel.queue_unbind(every.destination, every.source, every.routing_key)
    assert found(judge(), Drift.MISSING_BINDING) == [
        f"{every.source} -{every.routing_key}-> {every.destination}"
    ]


def test_a_shop_that_reads_another_shops_events_is_found(
    judge: Callable[[], Verdict], verified_url: str
) -> None:
    with amqp(verified_url) as channel:
        channel.queue_bind("events.acme", "holdfast.events", "other.#")
    try:
        assert found(judge(), Drift.FOREIGN_BINDING) == ["holdfast.events -other.#-> events.acme"]
    finally:
        with amqp(verified_url) as channel:
            channel.queue_unbind("events.acme", "holdfast.events", "other.#")


def test_a_way_into_our_queues_past_our_exchanges_is_found(
    judge: Callable[[], Verdict], verified_url: str
) -> None:
    with amqp(verified_url) as channel:
        channel.queue_bind("escrow.release", "amq.topic", "#")
    try:
        assert found(judge(), Drift.FOREIGN_BINDING) == ["amq.topic -#-> escrow.release"]
    finally:
        with amqp(verified_url) as channel:
            channel.queue_unbind("escrow.release", "amq.topic", "#")


def test_a_foreign_queue_and_its_listening_are_found(judge: Callable[[], Verdict], verified_url: str) -> None:
    with amqp(verified_url) as channel:
        channel.queue_declare("eavesdropper", durable=True, arguments=QUORUM)
        channel.queue_bind("eavesdropper", "holdfast.inbound", "#")
    try:
        findings = {(finding.drift, finding.name) for finding in judge().findings}
        assert findings == {
            (Drift.FOREIGN_QUEUE, "eavesdropper"),
            (Drift.FOREIGN_BINDING, "holdfast.inbound -#-> eavesdropper"),
        }
    finally:
        with amqp(verified_url) as channel:
            channel.queue_delete("eavesdropper")


def test_a_foreign_exchange_is_found(judge: Callable[[], Verdict], verified_url: str) -> None:
    with amqp(verified_url) as channel:
        channel.exchange_declare("holdfast.inbound.copy", exchange_type="topic", durable=True)
    try:
        assert found(judge(), Drift.FOREIGN_EXCHANGE) == ["holdfast.inbound.copy"]
    finally:
        with amqp(verified_url) as channel:
            channel.exchange_delete("holdfast.inbound.copy")


def test_lanes_of_another_day_are_named_for_what_they_are(
    make_vhost: Callable[[], str], management_url: str
) -> None:
    url = make_vhost()
    topology.apply(url, 7)
    topology.apply(url, 86_400)
    assert topology.verify(url, 86_400) == [], "nothing of ours met an old lane's arguments"
    verdict = judge_broker(url, management_url, 86_400)
    details = {finding.name: finding.detail for finding in verdict.findings if "delay." in finding.name}
    lanes = [f"delay.{days * 7000}" for days in range(3, 8)]
    assert all("once it is empty" in details[lane] for lane in lanes)


def test_a_missing_queue_and_exchange_are_found(judge: Callable[[], Verdict], verified_url: str) -> None:
    with amqp(verified_url) as channel:
        channel.queue_delete("escrow.hold.XQ")
        channel.exchange_delete("holdfast.unrouted")
    drifts = {(finding.drift, finding.name) for finding in judge().findings}
    assert drifts == {
        (Drift.MISSING_QUEUE, "escrow.hold.XQ"),
        (Drift.MISSING_EXCHANGE, "holdfast.unrouted"),
        (Drift.MISSING_BINDING, "holdfast.dead_letters -escrow.hold.XQ-> escrow.hold.XQ"),
        (Drift.MISSING_BINDING, "holdfast.unrouted --> quarantine"),
    }


def test_a_registered_shop_without_its_queue_is_found(verified_url: str, management_url: str) -> None:
    verdict = judge_broker(verified_url, management_url, DAY_SECONDS, shop_ids=["acme", "lost"])
    assert {(finding.drift, finding.name) for finding in verdict.findings} == {
        (Drift.MISSING_QUEUE, "events.lost"),
        (Drift.MISSING_BINDING, "holdfast.events -lost.#-> events.lost"),
    }


def test_a_shops_queue_with_other_arguments_is_found(judge: Callable[[], Verdict], verified_url: str) -> None:
    with amqp(verified_url) as channel:
        channel.queue_delete("events.acme")
        channel.queue_declare("events.acme", durable=True, arguments=QUORUM)
        channel.queue_bind("events.acme", "holdfast.events", "acme.#")
    try:
        verdict = judge()
        assert found(verdict, Drift.DIFFERENT_QUEUE) == ["events.acme"]
        assert "x-overflow is missing, wanted reject-publish" in verdict.findings[0].detail
    finally:
        with amqp(verified_url) as channel:
            channel.queue_delete("events.acme")


@pytest.mark.parametrize(
    ("definition", "touched"),
    [
        ({"message-ttl": 60_000}, {"escrow.hold", "quarantine", "events.acme"}),
        ({"expires": 60_000}, {"escrow.hold", "delay.rung.1000"}),
        ({"max-length": 10}, {"escrow.hold"}),
    ],
    ids=min,
)
def test_a_policy_that_could_lose_messages_is_found_on_each_queue(
    judge: Callable[[], Verdict],
    verified_url: str,
    management_url: str,
    definition: dict[str, int],
    touched: set[str],
) -> None:
    vhost = quote(urlsplit(verified_url).path[1:], safe="")
    parts = urlsplit(management_url)
    assert parts.username
    assert parts.password
    policy = f"http://{parts.hostname}:{parts.port}/api/policies/{vhost}/tidy"
    with httpx.Client(auth=(parts.username, parts.password)) as client:
        body = {
            "pattern": "^(" + "|".join(map(re.escape, touched)) + ")$",
            "definition": definition,
            "apply-to": "queues",
        }
        # Applied only to what is not there: the finding is about what it says, and nothing gets harmed.
        client.put(policy, json=body).raise_for_status()
        try:
            assert set(found(judge(), Drift.POLICY)) == touched
        finally:
            client.delete(policy).raise_for_status()


def test_a_broker_that_is_too_old_is_found(
    judge: Callable[[], Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(topology, "OLDEST_RABBITMQ", (99, 0))
        verdict = judge()
    assert found(verdict, Drift.BROKER_TOO_OLD) == ["rabbitmq"]
    assert "99.0 is the oldest that works" in verdict.findings[0].detail


class NodeWithoutStreams(PrivateRabbitMQ):
    """As a cluster is that came here by upgrades and never had its feature flags enabled."""

    def _environment(self, ports: dict[str, int]) -> dict[str, str]:
        return {**super()._environment(ports), "RABBITMQ_FEATURE_FLAGS": "quorum_queue"}


def test_a_feature_flag_that_is_off_is_found_with_and_without_the_management_api(tmp_path: Path) -> None:
    node = NodeWithoutStreams(tmp_path)
    node.start()
    try:
        node.wait_until_ready()
        topology.apply(node.url(), DAY_SECONDS)
        for management_url in (None, node.management_url):
            verdict = judge_broker(node.url(), management_url, DAY_SECONDS)
            assert [(finding.drift, finding.name) for finding in verdict.findings] == [
                (Drift.FEATURE_FLAG_OFF, "stream_queue")
            ]
    finally:
        node.stop()


def test_without_the_management_api_it_says_what_it_could_not_check(verified_url: str) -> None:
    verdict = judge_broker(verified_url, None, DAY_SECONDS)
    assert verdict.findings == ()
    (sentence,) = verdict.not_checked
    assert "bindings" in sentence
    assert "HOLDFAST_BROKER_MANAGEMENT_URL" in sentence


def test_a_user_who_may_read_less_is_told_what_was_not_checked(
    node: PrivateRabbitMQ, verified_url: str, management_url: str
) -> None:
    vhost = urlsplit(verified_url).path[1:]
    node._evaluate(
        'rabbit_auth_backend_internal:add_user(<<"looker">>, <<"secret">>, <<"t">>),'
        'rabbit_auth_backend_internal:set_tags(<<"looker">>, [management], <<"t">>),'
        f'rabbit_auth_backend_internal:set_permissions(<<"looker">>, <<"{vhost}">>, <<"^$">>, <<"^$">>,'
        ' <<".*">>, <<"t">>), ok.'
    )
    parts = urlsplit(management_url)
    looker = f"http://looker:secret@{parts.hostname}:{parts.port}"
    verdict = judge_broker(verified_url, looker, DAY_SECONDS)
    assert verdict.findings == ()
    (sentence,) = verdict.not_checked
    assert sentence.startswith("feature flags, but for a probe")
    assert "`administrator`" in sentence


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"password": "wr%40ng"}, "refuses the user"),
        ({"port": 1}, "can't be reached"),
        ({"path": "/elsewhere"}, "does not answer as a management API"),
    ],
    ids=["password", "port", "path"],
)
def test_a_wrong_management_url_is_one_sentence_without_the_password(
    verified_url: str, management_url: str, change: dict[str, Any], complaint: str
) -> None:
    parts = urlsplit(management_url)
    user, password = parts.username, change.get("password", parts.password)
    url = (
        f"http://{user}:{password}@{parts.hostname}:{change.get('port', parts.port)}{change.get('path', '')}"
    )
    with pytest.raises(ManagementUnavailable, match=complaint) as refused:
        judge_broker(verified_url, url, DAY_SECONDS)
    assert "HOLDFAST_BROKER_MANAGEMENT_URL" in str(refused.value)
    assert str(password) not in str(refused.value)
