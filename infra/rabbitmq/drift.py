"""
How a broker differs from the topology, as the management API shows it: all that plain AMQP cannot see.

Pure: what the broker holds comes in, findings go out.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from infra.rabbitmq.management import Holdings
from infra.rabbitmq.topology import Binding, Drift, Exchange, Finding, Queue, Topology, shop_queue

_SHOP_QUEUE = re.compile(r"events\.([a-z0-9-]{1,64})")
_OLD_LANE = re.compile(r"delay\.(rung\.)?[0-9]+")
# On 4.x both are part of every broker; on 3.10 an upgraded cluster may lack them.
_NEEDED_FLAGS = {
    "quorum_queue": "there are no replicated queues without it",
    "stream_queue": "dead-lettering is at most once without it: delayed messages may be lost",
}
# What a policy may do to a queue of ours that its arguments were written to rule out.
_LOSING = ("expires", "message-ttl", "overflow", "dead-letter-exchange", "dead-letter-routing-key")
_BOUNDING = ("max-length", "max-length-bytes", "delivery-limit")
_POLICIES_OF_QUEUES = {"all", "queues", "quorum_queues"}


def findings_of(held: Holdings, wanted: Topology, shop_ids: Collection[str] = ()) -> list[Finding]:
    """
    Compare what a vhost holds with what it should hold.

    Shops' event queues belong to it too: of these shops, and of those whose queue is there.
    """
    shop_queues, shop_bindings = _shops(held.queues, shop_ids)
    queues = {queue.name: queue for queue in (*wanted.queues, *shop_queues)}
    return [
        *_exchanges(held.exchanges, wanted.exchanges),
        *_queues(held.queues, queues),
        *_bindings(held.bindings, {*wanted.bindings, *shop_bindings}),
        *_policies(held.policies or (), queues),
        *_feature_flags(held.feature_flags or ()),
    ]


def not_checked(held: Holdings) -> list[str]:
    """Say what this user may not read."""
    missing = []
    if held.policies is None:
        missing.append("policies: the user of HOLDFAST_BROKER_MANAGEMENT_URL needs the tag `monitoring`")
    if held.feature_flags is None:
        missing.append(
            "feature flags, but for a probe of `stream_queue`: the user of HOLDFAST_BROKER_MANAGEMENT_URL"
            " needs the tag `administrator`"
        )
    return missing


def _shops(held: Sequence[dict[str, Any]], shop_ids: Collection[str]) -> tuple[list[Queue], list[Binding]]:
    seen = {match[1] for queue in held if (match := _SHOP_QUEUE.fullmatch(str(queue["name"])))}
    pairs = [shop_queue(shop_id) for shop_id in sorted(seen.union(shop_ids))]
    return [queue for queue, _ in pairs], [binding for _, binding in pairs]


def _exchanges(held: Sequence[dict[str, Any]], wanted: Sequence[Exchange]) -> Iterator[Finding]:
    there = {str(exchange["name"]): exchange for exchange in held}
    for exchange in wanted:
        found = there.get(exchange.name)
        if found is None:
            yield Finding(Drift.MISSING_EXCHANGE, exchange.name, "no such exchange")
        elif differences := _differences(found, exchange.arguments, type=exchange.type):
            yield Finding(Drift.DIFFERENT_EXCHANGE, exchange.name, differences)
    for name in sorted(there.keys() - {exchange.name for exchange in wanted}):
        # The broker's own.
        if name and not name.startswith("amq."):
            yield Finding(Drift.FOREIGN_EXCHANGE, name, "not ours: delete it, or move it to another vhost")


def _queues(held: Sequence[dict[str, Any]], wanted: Mapping[str, Queue]) -> Iterator[Finding]:
    there = {str(queue["name"]): queue for queue in held}
    for name, queue in wanted.items():
        found = there.get(name)
        if found is None:
            yield Finding(Drift.MISSING_QUEUE, name, "no such queue")
        elif differences := _differences(found, queue.arguments):
            yield Finding(Drift.DIFFERENT_QUEUE, name, differences)
    for name in sorted(there.keys() - wanted.keys()):
        if name.startswith("holdfast.probe."):
            continue
        yield Finding(
            Drift.FOREIGN_QUEUE,
            name,
            "a delay lane of another version or length of a day: delete it once it is empty"
            if _OLD_LANE.fullmatch(name)
            else "not ours: delete it, or move it to another vhost",
        )


def _differences(found: dict[str, Any], arguments: Mapping[str, object], **facts: object) -> str:
    """Say how an object differs; a durable one that outlives its users is wanted everywhere."""
    facts = {"durable": True, "auto_delete": False, **facts}
    told = [
        f"{name} is {found[name]}, wanted {value}" for name, value in facts.items() if found[name] != value
    ]
    there: dict[str, object] = found["arguments"] or {}
    told += [
        f"{name} is {there.get(name, 'missing')}, wanted {arguments.get(name, 'none')}"
        for name in sorted({*there, *arguments})
        if there.get(name) != arguments.get(name)
    ]
    return "; ".join(told)


def _bindings(held: Sequence[dict[str, Any]], wanted: set[Binding]) -> Iterator[Finding]:
    # The default exchange's binding to every queue is the broker's own.
    there = {_binding(row) for row in held if row["source"]}
    for binding in sorted(wanted - there, key=_described):
        yield Finding(Drift.MISSING_BINDING, _described(binding), "what is published there goes astray")
    for binding in sorted(there - wanted, key=_described):
        yield Finding(
            Drift.FOREIGN_BINDING, _described(binding), "not ours: whoever reads there sees or gets too much"
        )


def _binding(row: dict[str, Any]) -> Binding:
    return Binding(
        row["source"],
        row["destination"],
        row["routing_key"],
        to_exchange=row["destination_type"] == "exchange",
    )


def _described(binding: Binding) -> str:
    return f"{binding.source} -{binding.routing_key}-> {binding.destination}"


def _policies(policies: Sequence[dict[str, Any]], queues: Mapping[str, Queue]) -> Iterator[Finding]:
    """Of several policies the broker applies the one of highest priority; any of them may become that."""
    for policy in policies:
        definition: dict[str, object] = policy["definition"]
        if policy["apply-to"] not in _POLICIES_OF_QUEUES:
            continue
        losing = [key for key in _LOSING if key in definition]
        bounding = [key for key in _BOUNDING if key in definition]
        for name in queues:
            # A shop's own queue may be bounded more tightly: it refuses what it can't take.
            keys = losing if _SHOP_QUEUE.fullmatch(name) else [*losing, *bounding]
            if keys and re.search(policy["pattern"], name):
                yield Finding(
                    Drift.POLICY, name, f"policy {policy['name']} sets {', '.join(keys)}: take it away"
                )


def _feature_flags(flags: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for flag in flags:
        # One that the broker no longer lists, or requires, is always on.
        if flag["name"] in _NEEDED_FLAGS and flag["state"] != "enabled":
            yield Finding(
                Drift.FEATURE_FLAG_OFF,
                flag["name"],
                f"{_NEEDED_FLAGS[flag['name']]}; run `rabbitmqctl enable_feature_flag {flag['name']}`",
            )
