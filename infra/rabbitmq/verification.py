"""Whether the broker is as this version needs it, by everything that can be seen of it."""

from collections.abc import Collection
from dataclasses import dataclass

from infra.rabbitmq.drift import findings_of, not_checked
from infra.rabbitmq.management import ManagementApi
from infra.rabbitmq.topology import Finding, topology, verify

_NOT_OVER_AMQP = (
    "bindings, foreign exchanges, queues and policies, shops' event queues: set"
    " HOLDFAST_BROKER_MANAGEMENT_URL to RabbitMQ's management API"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What differs, and in a sentence each what nobody could look at."""

    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that was looked at differs."""
        return not self.findings


def judge_broker(
    broker_url: str, management_url: str | None, day_seconds: int, *, shop_ids: Collection[str] = ()
) -> Verdict:
    """
    Compare the broker with the topology, changing nothing.

    The broker itself compares its objects with ours over AMQP; the management API adds what AMQP hides.

    Raises:
        ManagementUnavailable: a management URL is given and does not answer.
        pika.exceptions.AMQPError, OSError: the broker is away.
    """
    findings = verify(broker_url, day_seconds)
    if management_url is None:
        return Verdict(tuple(findings), (_NOT_OVER_AMQP,))
    with ManagementApi(management_url, broker_url) as api:
        held = api.read()
    known = {(finding.drift, finding.name) for finding in findings}
    findings += [
        finding
        for finding in findings_of(held, topology(day_seconds), shop_ids)
        if (finding.drift, finding.name) not in known
    ]
    return Verdict(tuple(findings), tuple(not_checked(held)))
