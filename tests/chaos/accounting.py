"""What became of each event that was said: pure arithmetic, so that it can be shown to fail."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Fate(StrEnum):
    """Where an event may end. Every confirmed one is in exactly one of these."""

    APPLIED = "applied"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"
    QUEUED = "still queued"


@dataclass(slots=True)
class Said:
    """One event; how often it was sent, and how often the broker confirmed it."""

    event_id: str
    # The fates that it may have: a forgery that was applied is worse than one that was lost.
    may_become: frozenset[Fate]
    attempts: int = 0
    confirmed: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """One hold that was released, and the earliest moment at which it might have been."""

    hold_id: str
    not_before: datetime
    released_at: datetime


@dataclass(frozen=True, slots=True)
class Findings:
    """
    What was found out when everything had come to rest.

    `effects` counts, per business key and kind, how often something that may happen once has happened;
    `events_written` are the answers that are committed, `events_heard` those that reached the shop.
    """

    fates: Mapping[Fate, Collection[str]]
    effects: Mapping[str, int]
    releases: Sequence[Release]
    events_written: Collection[str] = frozenset()
    events_heard: Collection[str] = frozenset()
    # Sentences of the audit, of the second accountant and of the comparison with the bank.
    contradictions: Sequence[str] = ()


@dataclass(slots=True)
class Account:
    """The result: counts of events, and what is wrong, item by item."""

    attempted: int = 0
    sent: int = 0
    confirmed: int = 0
    by_fate: dict[Fate, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    misjudged: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing lost, nothing twice, nothing early; and nothing else that contradicts the books."""
        return not (self.lost or self.duplicated or self.early or self.misjudged or self.contradictions)


def account_for(said: Sequence[Said], found: Findings) -> Account:
    """
    Say what became of every event that was said.

    Lost is a confirmed event without a fate, and a committed answer that the shop never heard. Duplicated is
    an event with two fates, an effect that happened twice, and an answer that nobody committed. An event
    that was never confirmed may have arrived or not; what it then did counts like any other.
    """
    account = Account(contradictions=list(found.contradictions))
    account.by_fate = dict.fromkeys(Fate, 0)
    for one in said:
        fates = [fate for fate in Fate if one.event_id in found.fates.get(fate, ())]
        account.attempted += 1
        account.sent += one.attempts
        if len(fates) > 1:
            account.duplicated.append(f"event {one.event_id} is {' and '.join(fates)}")
        if fates and not set(fates) <= one.may_become | {Fate.QUEUED}:
            account.misjudged.append(f"event {one.event_id} is {' and '.join(fates)}")
        if not one.confirmed:
            continue
        account.confirmed += 1
        if fates:
            account.by_fate[fates[0]] += 1
        else:
            account.lost.append(f"event {one.event_id}, confirmed {one.confirmed} times, left no trace")
    account.lost += [
        f"answer {event_id} was committed and never heard"
        for event_id in sorted(set(found.events_written) - set(found.events_heard))
    ]
    account.duplicated += [
        f"answer {event_id} was heard and is not in the books"
        for event_id in sorted(set(found.events_heard) - set(found.events_written))
    ]
    account.duplicated += [
        f"{effect} happened {times} times" for effect, times in sorted(found.effects.items()) if times > 1
    ]
    account.early += [
        f"hold {one.hold_id} left {one.not_before - one.released_at} early"
        for one in found.releases
        if one.released_at < one.not_before
    ]
    return account


def summary(account: Account) -> str:
    """Return the figures, one a line; what is wrong follows, item by item, the first twenty of each."""
    figures: dict[str, int] = {
        "attempted": account.attempted,
        "confirmed": account.confirmed,
        **{fate.value: count for fate, count in account.by_fate.items()},
        "lost": len(account.lost),
        "duplicated": len(account.duplicated),
        "early": len(account.early),
        "misjudged": len(account.misjudged),
        "contradictions": len(account.contradictions),
    }
    lines = [f"  {name:<14} {count:>7,}" for name, count in figures.items()]
    for items in (
        account.lost,
        account.duplicated,
        account.early,
        account.misjudged,
        account.contradictions,
    ):
        lines += [f"    {item}" for item in items[:20]]
    return "\n".join(lines)
