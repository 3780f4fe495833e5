"""Disputes and refunds on holds: pure rules. One hold's cents have one fate each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from schemas.reasons import Reason
from workers.escrow.decisions import HoldState

# Money that is still protected: a dispute may freeze it, a refund may take from it.
_PROTECTED = frozenset({HoldState.HELD, HoldState.FROZEN})


@dataclass(frozen=True, slots=True)
class ProtectedHold:
    """A hold as recourse sees it, locked; minor units. `disputes` are the open ones that froze it."""

    hold_id: UUID
    seller_id: str
    currency: str
    state: HoldState
    amount_minor: int
    refunded_minor: int
    disputes: frozenset[UUID]

    @property
    def remaining_minor(self) -> int:
        return self.amount_minor - self.refunded_minor

    @property
    def protected(self) -> bool:
        return self.state in _PROTECTED and self.remaining_minor > 0


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Freeze:
    holds: tuple[ProtectedHold, ...]


@dataclass(frozen=True, slots=True)
class RefundOf:
    hold: ProtectedHold
    amount_minor: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    parts: tuple[RefundOf, ...]

    @property
    def total_minor(self) -> int:
        return sum(part.amount_minor for part in self.parts)


def decide_dispute(holds: Sequence[ProtectedHold], seller_ids: Sequence[str] | None) -> Freeze | Refused:
    """
    Judge `dispute.opened`: freeze what is still protected of the order, or of the sellers named.

    What was released before stays with its seller; when nothing is left to protect, there is nothing to
    dispute here.
    """
    of_order = {hold.seller_id: hold for hold in holds}
    unknown = [seller_id for seller_id in seller_ids or () if seller_id not in of_order]
    if unknown:
        return Refused(Reason.UNKNOWN_SELLER, "seller_ids: not a seller of this order")
    chosen = [of_order[seller_id] for seller_id in seller_ids] if seller_ids else list(holds)
    protected = tuple(hold for hold in chosen if hold.protected)
    if not protected:
        return Refused(Reason.NOT_REFUNDABLE, "nothing of it is held any more")
    return Freeze(protected)


def decide_refund(holds: Iterable[ProtectedHold], asked: Mapping[str, int]) -> GiveBack | Refused:
    """
    Judge what shall go back to the buyer, by seller: all of it or nothing.

    Taken from what is still held, frozen or not, up to what remains.
    """
    of_order = {hold.seller_id: hold for hold in holds}
    if any(seller_id not in of_order for seller_id in asked):
        return Refused(Reason.UNKNOWN_SELLER, "refunds: not a seller of this order")
    for seller_id, amount_minor in asked.items():
        hold = of_order[seller_id]
        if not hold.protected:
            return Refused(Reason.NOT_REFUNDABLE, f"refunds: nothing of {seller_id}'s part is held any more")
        if amount_minor > hold.remaining_minor:
            return Refused(Reason.NOT_REFUNDABLE, f"refunds: {seller_id}'s part holds less than that")
    return GiveBack(tuple(RefundOf(of_order[seller_id], amount) for seller_id, amount in asked.items()))


def freeze(hold: ProtectedHold, dispute: UUID) -> ProtectedHold:
    return replace(hold, state=HoldState.FROZEN, disputes=hold.disputes | {dispute})


def give_back(part: RefundOf) -> ProtectedHold:
    """Take a refund from a hold; one that is empty then is refunded and takes part in nothing more."""
    hold = replace(part.hold, refunded_minor=part.hold.refunded_minor + part.amount_minor)
    return replace(hold, state=HoldState.REFUNDED) if hold.remaining_minor == 0 else hold


def unfreeze(hold: ProtectedHold, dispute: UUID) -> ProtectedHold:
    """End one dispute on a hold; it stays frozen while another one is open."""
    others = hold.disputes - {dispute}
    thaws = hold.state is HoldState.FROZEN and not others
    return replace(hold, state=HoldState.HELD if thaws else hold.state, disputes=others)
