"""What a restored database and the bank can disagree on, and what is left to people."""

import pytest

from ops.recovery import GIVEN_UP, SETTLED_BY_HAND, KnownTransfer, What, compare_transfers, may_be_old
from workers.payout.transfers import BankWord, ListedTransfer


def known(state: str, *, amount: int = 100, id_: str = "a") -> KnownTransfer:
    return KnownTransfer(id_, state, amount, "CNY")


def listed(word: BankWord, *, amount: int = 100, id_: str = "a") -> ListedTransfer:
    return ListedTransfer(1, id_, word, amount, "CNY")


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("settled", BankWord.SETTLED),
        # The list of returns tells it by itself.
        ("settled", BankWord.RETURNED),
        ("returned", BankWord.RETURNED),
        ("failed", BankWord.REJECTED),
        # Whatever is still open, the bank is asked about.
        *[(state, word) for state in ("sending", "unknown", "submitted") for word in list(BankWord)[:4]],
        # Forgotten, said again, and not yet sent: it goes out under the id that the bank knows.
        *[(state, BankWord.SETTLED) for state in ("checking", "pending", "proposed", "ready", "waiting")],
        # A refund that was begun anew, or came back after it had settled.
        (GIVEN_UP, BankWord.REJECTED),
        (GIVEN_UP, BankWord.RETURNED),
        # Refused, and nothing of it has left.
        ("rejected", BankWord.REJECTED),
        ("rejected", BankWord.RETURNED),
    ],
)
def test_what_follows_the_bank_by_itself_is_no_decision(state: str, word: BankWord) -> None:
    assert list(compare_transfers([known(state)], [listed(word)])) == []


@pytest.mark.parametrize("word", [BankWord.PENDING, BankWord.SETTLED, BankWord.RETURNED])
def test_what_the_bank_made_and_we_forgot_must_be_decided(word: BankWord) -> None:
    (decision,) = compare_transfers([], [listed(word)])
    assert (decision.what, decision.subject) == (What.UNKNOWN_TO_US, "a")
    assert "100 CNY" in decision.detail


def test_what_the_bank_rejected_and_we_forgot_moved_nothing() -> None:
    assert list(compare_transfers([], [listed(BankWord.REJECTED)])) == []


@pytest.mark.parametrize("word", [BankWord.PENDING, BankWord.SETTLED])
def test_what_was_refused_here_and_paid_by_the_bank_must_be_decided(word: BankWord) -> None:
    """Said again before its money was released again: the refusal is final, and the money is gone."""
    (decision,) = compare_transfers([known("rejected")], [listed(word)])
    assert decision.what is What.PAID_THOUGH_REFUSED
    assert not may_be_old(decision)


@pytest.mark.parametrize("state", ["submitted", "settled", "failed", "returned", GIVEN_UP])
def test_what_the_bank_took_and_the_bank_does_not_list_must_be_decided(state: str) -> None:
    (decision,) = compare_transfers([known(state)], [])
    assert decision.what is What.UNKNOWN_TO_BANK


@pytest.mark.parametrize(
    "state", ["checking", "pending", "ready", "waiting", "rejected", "sending", "unknown", SETTLED_BY_HAND]
)
def test_what_may_never_have_left_this_house_need_not_be_at_the_bank(state: str) -> None:
    assert list(compare_transfers([known(state)], [])) == []


def test_another_amount_under_the_same_id_must_be_decided() -> None:
    (decision,) = compare_transfers([known("submitted")], [listed(BankWord.SETTLED, amount=99)])
    assert decision.what is What.OTHER_AMOUNT


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("failed", BankWord.SETTLED),
        ("failed", BankWord.RETURNED),
        ("settled", BankWord.REJECTED),
        ("settled", BankWord.PENDING),
        ("returned", BankWord.SETTLED),
        (GIVEN_UP, BankWord.SETTLED),
    ],
)
def test_another_end_than_the_banks_must_be_decided(state: str, word: BankWord) -> None:
    (decision,) = compare_transfers([known(state)], [listed(word)])
    assert decision.what is What.OTHER_END
    assert decision.remedy
