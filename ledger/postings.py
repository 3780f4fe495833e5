"""One row of the ledger: so much, from the account debited to the account credited."""

from collections.abc import Sequence
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from ledger.accounts import NO_SELLER, SELLER_KINDS, AccountKind
from ledger.errors import InvalidPosting
from ledger.ids import derive_ids

# One posting's bound by the contract; sums may be far larger.
MAX_AMOUNT_MINOR = 10**15


class PostingKind(StrEnum):
    """Why money moved. Each kind has one pair of accounts and one kind of cause."""

    PAYMENT_RECEIVED = "payment_received"  # cause: payment
    PAYMENT_FUNDED = "payment_funded"  # cause: credit
    PAYMENT_UNFUNDED = "payment_unfunded"  # cause: debit of the bank
    CREDIT_SUSPENDED = "credit_suspended"  # cause: credit
    CREDIT_CLAIMED = "credit_claimed"  # cause: credit
    CREDIT_TAKEN_BACK = "credit_taken_back"  # cause: debit of the bank
    DEBIT_EXPLAINED = "debit_explained"  # cause: debit of the bank
    HELD = "held"  # cause: hold
    RELEASED = "released"  # cause: hold
    FEE_TAKEN = "fee_taken"  # cause: hold
    PAYOUT_RESERVED = "payout_reserved"  # cause: withdrawal
    PAYOUT_CANCELLED = "payout_cancelled"  # cause: withdrawal
    PAYOUT_SETTLED = "payout_settled"  # cause: withdrawal
    PAYOUT_FAILED = "payout_failed"  # cause: withdrawal
    PAYOUT_RETURNED = "payout_returned"  # cause: withdrawal
    PAYOUT_ADVANCED = "payout_advanced"  # cause: withdrawal that was adopted
    DEBT_REPAID = "debt_repaid"  # cause: withdrawal whose money came back
    REFUND_RESERVED = "refund_reserved"  # cause: part of a refund
    REFUND_SETTLED = "refund_settled"  # cause: part of a refund
    REFUND_RETURNED = "refund_returned"  # cause: part of a refund
    CLAIM_TAKEN = "claim_taken"  # cause: claim
    CLAIM_OWED = "claim_owed"  # cause: claim
    CLAIM_PAID = "claim_paid"  # cause: hold whose release paid it
    FEE_RETURNED = "fee_returned"  # cause: claim
    CLAIM_RETURNED = "claim_returned"  # cause: claim
    CLAIM_WAIVED = "claim_waived"  # cause: claim
    FEE_RESTORED = "fee_restored"  # cause: claim
    FEES_PAYOUT_RESERVED = "fees_payout_reserved"  # cause: shop payout
    FEES_PAYOUT_FAILED = "fees_payout_failed"  # cause: shop payout
    FEES_PAYOUT_RETURNED = "fees_payout_returned"  # cause: shop payout
    RECOVERED_PAYOUT_RESERVED = "recovered_payout_reserved"  # cause: shop payout
    RECOVERED_PAYOUT_FAILED = "recovered_payout_failed"  # cause: shop payout
    RECOVERED_PAYOUT_RETURNED = "recovered_payout_returned"  # cause: shop payout
    SHOP_PAYOUT_SETTLED = "shop_payout_settled"  # cause: shop payout


_K = AccountKind
# The account debited and the account credited by each kind.
ACCOUNTS_OF: dict[PostingKind, tuple[AccountKind, AccountKind]] = {
    PostingKind.PAYMENT_RECEIVED: (_K.INCOMING, _K.RECEIVED),
    PostingKind.PAYMENT_FUNDED: (_K.BANK_CASH, _K.INCOMING),
    PostingKind.PAYMENT_UNFUNDED: (_K.INCOMING, _K.BANK_CASH),
    PostingKind.CREDIT_SUSPENDED: (_K.BANK_CASH, _K.SUSPENSE),
    PostingKind.CREDIT_CLAIMED: (_K.SUSPENSE, _K.BANK_CASH),
    PostingKind.CREDIT_TAKEN_BACK: (_K.SUSPENSE, _K.BANK_CASH),
    PostingKind.DEBIT_EXPLAINED: (_K.BANK_CASH, _K.SUSPENSE),
    PostingKind.HELD: (_K.RECEIVED, _K.HELD),
    PostingKind.RELEASED: (_K.HELD, _K.AVAILABLE),
    PostingKind.FEE_TAKEN: (_K.HELD, _K.FEES),
    PostingKind.PAYOUT_RESERVED: (_K.AVAILABLE, _K.IN_PAYOUT),
    PostingKind.PAYOUT_CANCELLED: (_K.IN_PAYOUT, _K.AVAILABLE),
    PostingKind.PAYOUT_SETTLED: (_K.IN_PAYOUT, _K.BANK_CASH),
    PostingKind.PAYOUT_FAILED: (_K.IN_PAYOUT, _K.AVAILABLE),
    PostingKind.PAYOUT_RETURNED: (_K.BANK_CASH, _K.AVAILABLE),
    PostingKind.PAYOUT_ADVANCED: (_K.RECEIVABLE, _K.AVAILABLE),
    PostingKind.DEBT_REPAID: (_K.AVAILABLE, _K.RECEIVABLE),
    PostingKind.REFUND_RESERVED: (_K.HELD, _K.REFUNDABLE),
    PostingKind.REFUND_SETTLED: (_K.REFUNDABLE, _K.BANK_CASH),
    PostingKind.REFUND_RETURNED: (_K.BANK_CASH, _K.REFUNDABLE),
    PostingKind.CLAIM_TAKEN: (_K.AVAILABLE, _K.RECOVERED),
    PostingKind.CLAIM_OWED: (_K.RECEIVABLE, _K.RECOVERED),
    PostingKind.CLAIM_PAID: (_K.AVAILABLE, _K.RECEIVABLE),
    PostingKind.FEE_RETURNED: (_K.FEES, _K.RECOVERED),
    PostingKind.CLAIM_RETURNED: (_K.RECOVERED, _K.AVAILABLE),
    PostingKind.CLAIM_WAIVED: (_K.RECOVERED, _K.RECEIVABLE),
    PostingKind.FEE_RESTORED: (_K.RECOVERED, _K.FEES),
    PostingKind.FEES_PAYOUT_RESERVED: (_K.FEES, _K.SHOP_IN_PAYOUT),
    PostingKind.FEES_PAYOUT_FAILED: (_K.SHOP_IN_PAYOUT, _K.FEES),
    PostingKind.FEES_PAYOUT_RETURNED: (_K.BANK_CASH, _K.FEES),
    PostingKind.RECOVERED_PAYOUT_RESERVED: (_K.RECOVERED, _K.SHOP_IN_PAYOUT),
    PostingKind.RECOVERED_PAYOUT_FAILED: (_K.SHOP_IN_PAYOUT, _K.RECOVERED),
    PostingKind.RECOVERED_PAYOUT_RETURNED: (_K.BANK_CASH, _K.RECOVERED),
    PostingKind.SHOP_PAYOUT_SETTLED: (_K.SHOP_IN_PAYOUT, _K.BANK_CASH),
}


_NEEDS_SELLER = {
    kind: debit in SELLER_KINDS or credit in SELLER_KINDS for kind, (debit, credit) in ACCOUNTS_OF.items()
}


class Posting(Struct, frozen=True, gc=False):
    """
    Balanced by construction: one amount, two accounts, one shop, one currency, at most one seller.

    `posting_id` is derived from kind and cause, so the same effect can be written only once.

    Raises:
        InvalidPosting: the amount is not an integer from 1 to 10^15 minor units, or a seller's account
            without a seller.
    """

    kind: PostingKind
    cause_id: UUID
    shop_id: str
    seller_id: str
    currency: str
    amount_minor: int

    def __post_init__(self) -> None:
        amount_minor = self.amount_minor
        # bool is an int; a flag must never become one cent.
        if type(amount_minor) is not int:
            raise InvalidPosting(f"amount must be an int, is {type(amount_minor).__name__}")
        if not 1 <= amount_minor <= MAX_AMOUNT_MINOR:
            raise InvalidPosting(f"amount must be 1 to {MAX_AMOUNT_MINOR}, is {amount_minor}")
        needs_seller = _NEEDS_SELLER[self.kind]
        if needs_seller != (self.seller_id != NO_SELLER):
            raise InvalidPosting(f"{self.kind} {'needs a' if needs_seller else 'has no'} seller")

    @property
    def posting_id(self) -> UUID:
        """Computed each time: ask once."""
        return posting_ids([self])[0]

    @property
    def debit(self) -> AccountKind:
        return ACCOUNTS_OF[self.kind][0]

    @property
    def credit(self) -> AccountKind:
        return ACCOUNTS_OF[self.kind][1]


def posting_ids(postings: Sequence[Posting]) -> list[UUID]:
    """Compute the ids of as many as a batch books: of each, from its kind and its cause."""
    return derive_ids([posting.kind for posting in postings], [posting.cause_id for posting in postings])
