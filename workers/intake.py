"""What every inbound event goes through before its own rules: seen before? valid at all?"""

from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from infra.postgres.inbox import Arrival, Seen, Sighting, change_answers, register_arrivals
from infra.postgres.recorded_messages import record_refused_event
from infra.postgres.step import Step
from infra.rabbitmq.ingress import InboundEvent
from ledger.ids import key_id
from schemas.inbound import InvalidData
from schemas.outgoing import OutgoingData
from schemas.reasons import Reason

# Builds the reply that refuses an event; None where the sender gets no reply (banks).
Rejection = Callable[[InboundEvent, Reason, str], OutgoingData | None]

OTHER_CONTENT = "the same id came before with other content"


def take_in(
    step: Step,
    events: Sequence[InboundEvent],
    *,
    answer_ids: Callable[[Sequence[InboundEvent]], Iterable[UUID | None]],
    rejection: Rejection,
    told_before: Callable[[UUID], Iterable[UUID]] = lambda _answer_id: (),
) -> list[InboundEvent]:
    """
    Record events in the inbox and return those that are new and valid; answer the others.

    `answer_ids` names the event that answers each valid one, now or later; None where there is none.

    A repeat gets the first answer again under its first id, and what was told before it (`told_before`
    names that by the answer's id); other content under a known id and data that breaks the schema are
    refused. No `(source, id)` may stand twice in one call.
    """
    arrivals = _arrivals(events, answer_ids)
    fresh: list[InboundEvent] = []
    sightings = register_arrivals(step.connection, arrivals, now=step.now, all_new=step.all_new)
    for event, seen in zip(events, sightings, strict=True):
        if seen.sighting is Sighting.SAME_AGAIN:
            if seen.answer_id is not None:
                step.emit_again([*told_before(seen.answer_id), seen.answer_id])
        elif seen.sighting is Sighting.OTHER_CONTENT:
            refuse(
                step,
                event,
                conflict_id(event),
                Reason.CONFLICTING_DUPLICATE,
                OTHER_CONTENT,
                rejection=rejection,
            )
        elif isinstance(event.data, InvalidData):
            _refuse_invalid(step, event, seen, rejection)
        else:
            fresh.append(event)
    return fresh


def refuse(
    step: Step,
    event: InboundEvent,
    event_id: UUID,
    reason: Reason,
    detail: str,
    *,
    rejection: Rejection,
) -> None:
    """Tell the sender why not; where there is no reply, keep the event for the operator."""
    answer = rejection(event, reason, detail)
    if answer is None:
        record_refused_event(step.connection, event.envelope, reason=reason, detail=detail, now=step.now)
    else:
        step.emit(event_id, event.sender_id, answer)


def refuse_conflicts(step: Step, events: Sequence[InboundEvent], rejection: Rejection) -> None:
    """Refuse events whose business key is known with other content; repeats get this refusal again."""
    for event in events:
        refuse(
            step, event, conflict_id(event), Reason.CONFLICTING_DUPLICATE, OTHER_CONTENT, rejection=rejection
        )
    change_answers(step.connection, {event.key: conflict_id(event) for event in events})


def conflict_id(event: InboundEvent) -> UUID:
    """Derive the refusal's id from what was refused, so the same conflict has one refusal."""
    envelope = event.envelope
    return key_id("conflict", envelope.source, envelope.id, envelope.type, event.content_hash.hex())


def _refuse_invalid(step: Step, event: InboundEvent, seen: Seen, rejection: Rejection) -> None:
    data = event.data
    if isinstance(data, InvalidData) and seen.answer_id is not None:
        reason = Reason.INVALID_DATA if event.sender_active else Reason.SHOP_SUSPENDED
        refuse(step, event, seen.answer_id, reason, data.detail, rejection=rejection)


def _arrivals(
    events: Sequence[InboundEvent],
    answer_ids: Callable[[Sequence[InboundEvent]], Iterable[UUID | None]],
) -> list[Arrival]:
    valid = [event for event in events if not isinstance(event.data, InvalidData)]
    answers = list(answer_ids(valid))
    if len(answers) != len(valid):
        raise ValueError(f"{len(answers)} answers to {len(valid)} events")
    in_turn = iter(answers)
    return [
        Arrival(
            envelope.source,
            envelope.id,
            envelope.type,
            event.content_hash,
            key_id("invalid", envelope.source, envelope.id, event.content_hash.hex())
            if isinstance(event.data, InvalidData)
            else next(in_turn),
        )
        for event in events
        for envelope in (event.envelope,)
    ]
