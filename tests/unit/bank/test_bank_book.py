"""The bank's memory: money moves once per id, whatever asks, however often, from however many threads."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from infra.local.bank.book import Book
from infra.local.bank.journal import Journal
from infra.local.bank.wire import (
    Behaviour,
    BehaviourRequest,
    CreditRequest,
    DebitRequest,
    Refused,
    TransferRequest,
)

IBAN = "DE89370400440532013000"


class Bank:
    """A book that can be closed and read again, as after a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.restart()

    def restart(self) -> Book:
        if hasattr(self, "journal"):
            self.journal.close()
        self.journal = Journal(self.folder)
        self.book = Book(self.journal)
        return self.book


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    bank = Bank(tmp_path)
    yield bank
    bank.journal.close()


def a_transfer(end_to_end_id: str = "e-1", **changes: Any) -> TransferRequest:
    return TransferRequest.model_validate(
        {
            "end_to_end_id": end_to_end_id,
            "amount": 1_250,
            "currency": "EUR",
            "destination_id": "d-1",
            "destination": {"type": "iban", "iban": IBAN, "holder_name": "Seller"},
            **changes,
        }
    )


def a_credit(reference: str = "RF-1", amount: int = 500) -> CreditRequest:
    return CreditRequest(bank_reference=reference, amount=amount, currency="EUR")


def a_debit(reference: str = "RF-1", amount: int = 500) -> DebitRequest:
    return DebitRequest(bank_reference=reference, amount=amount, currency="EUR")


def run_clock_until(book: Book, condition: Callable[[], bool]) -> None:
    stopping, reached = threading.Event(), threading.Event()
    clock = threading.Thread(target=book.run_clock, args=(stopping,))
    clock.start()
    try:
        for _ in range(2_000):
            if condition():
                reached.set()
                break
            threading.Event().wait(0.005)
        assert reached.is_set()
    finally:
        stopping.set()
        book.wake()
        clock.join()


def settled_amount(book: Book) -> int:
    return int(book.counts()["totals"]["settled"].get("EUR", 0))


def test_the_same_transfer_again_gets_the_same_answer_and_moves_nothing(bank: Bank) -> None:
    first = bank.book.submit(a_transfer())
    assert first.answer["state"] == "settled"
    assert bank.book.submit(a_transfer()) == first
    assert settled_amount(bank.book) == 1_250
    assert bank.book.counts()["entries"]["transfer_repeated"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 1_251},
        {"currency": "CNY"},
        {"destination_id": "d-2"},
        {"destination": {"type": "iban", "iban": "GB33BUKB20201555555555", "holder_name": "Seller"}},
        {"destination": {"type": "iban", "iban": IBAN, "holder_name": "Somebody else"}},
    ],
)
def test_the_same_id_with_other_content_is_refused_and_moves_nothing(
    bank: Bank, change: dict[str, Any]
) -> None:
    bank.book.submit(a_transfer())
    with pytest.raises(Refused) as refused:
        bank.book.submit(a_transfer(**change))
    assert refused.value.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert settled_amount(bank.book) == 1_250


def test_the_same_iban_in_groups_of_four_is_the_same_content(bank: Bank) -> None:
    bank.book.submit(a_transfer())
    grouped = {"type": "iban", "iban": "DE89 3704 0044 0532 0130 00", "holder_name": "Seller"}
    assert bank.book.submit(a_transfer(destination=grouped)).answer["state"] == "settled"


def test_of_many_threads_with_one_transfer_exactly_one_moves_money(bank: Bank) -> None:
    threads = 16
    barrier = threading.Barrier(threads)

    def submit(_: int) -> Any:
        barrier.wait()
        return bank.book.submit(a_transfer()).answer

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(submit, range(threads)))
    assert all(answer == answers[0] for answer in answers)
    assert settled_amount(bank.book) == 1_250
    assert bank.book.counts()["entries"]["transfer_settled"] == 1


def test_after_a_restart_everything_is_known_and_nothing_moves_again(bank: Bank) -> None:
    bank.book.submit(a_transfer("e-1"))
    bank.book.behave(BehaviourRequest(behaviour=Behaviour.REJECT, destination="d-2"))
    bank.book.submit(a_transfer("e-2", destination_id="d-2"))
    bank.book.credit([a_credit()])
    before = bank.book.counts()

    book = bank.restart()
    assert book.counts() == before
    assert book.submit(a_transfer("e-1")).answer["state"] == "settled"
    assert book.submit(a_transfer("e-2", destination_id="d-2")).answer["state"] == "rejected"
    assert book.submit(a_transfer("e-3", destination_id="d-2")).answer["reason"] == "AC04"
    assert settled_amount(book) == 1_250
    with pytest.raises(Refused):
        book.submit(a_transfer("e-1", amount=1))


def test_a_transfer_never_seen_is_told_apart(bank: Bank) -> None:
    with pytest.raises(Refused) as refused:
        bank.book.find("e-none")
    assert refused.value.status == HTTPStatus.NOT_FOUND
    assert refused.value.body["error"] == "never_seen"


def test_a_late_transfer_is_pending_then_settles_once(bank: Bank) -> None:
    bank.book.behave(BehaviourRequest(behaviour=Behaviour.LATE, delay_seconds=0.05))
    assert bank.book.submit(a_transfer()).answer["state"] == "pending"
    assert settled_amount(bank.book) == 0
    run_clock_until(bank.book, lambda: bank.book.find("e-1")["state"] == "settled")
    assert settled_amount(bank.book) == 1_250
    assert settled_amount(bank.restart()) == 1_250


def test_a_late_transfer_settles_after_a_restart_too(bank: Bank) -> None:
    bank.book.behave(BehaviourRequest(behaviour=Behaviour.LATE, delay_seconds=0.05))
    bank.book.submit(a_transfer())
    book = bank.restart()
    assert book.find("e-1")["state"] == "pending"
    run_clock_until(book, lambda: book.find("e-1")["state"] == "settled")


def test_a_returned_transfer_was_settled_first_and_stands_in_the_list_of_returns(bank: Bank) -> None:
    bank.book.behave(BehaviourRequest(behaviour=Behaviour.RETURN_AFTER_SETTLING, delay_seconds=0.05))
    for end_to_end_id in ("e-1", "e-2"):
        assert bank.book.submit(a_transfer(end_to_end_id)).answer["state"] == "settled"
    assert bank.book.returns_after(0, 10) == []
    run_clock_until(bank.book, lambda: len(bank.book.returns_after(0, 10)) == 2)

    book = bank.restart()
    first, second = book.returns_after(0, 10)
    assert (first["end_to_end_id"], first["reason"]) == ("e-1", "AC06")
    assert book.returns_after(0, 1) == [first]
    assert book.returns_after(int(first["seq"]), 10) == [second]
    assert book.returns_after(int(second["seq"]), 10) == []
    assert book.find("e-1")["state"] == "returned"
    assert book.counts()["totals"]["returned"] == {"EUR": 2_500}


def test_a_transfer_that_is_never_answered_was_made_all_the_same(bank: Bank) -> None:
    bank.book.behave(BehaviourRequest(behaviour=Behaviour.TIME_OUT_AFTER_ACCEPTING))
    assert not bank.book.submit(a_transfer()).answered
    again = bank.book.submit(a_transfer())
    assert again.answered
    assert again.answer["state"] == "settled"
    assert settled_amount(bank.book) == 1_250


@pytest.mark.parametrize("destination", ["d-1", IBAN, "DE89 3704 0044 0532 0130 00"])
def test_a_behaviour_for_one_destination_leaves_the_others_alone(bank: Bank, destination: str) -> None:
    bank.book.behave(BehaviourRequest(behaviour=Behaviour.REJECT, destination=destination))
    assert bank.book.submit(a_transfer("e-1")).answer["state"] == "rejected"
    other = {
        "type": "bank_account",
        "country": "CN",
        "bank_code": "1",
        "account_number": "6222",
        "holder_name": "S",
    }
    assert (
        bank.book.submit(a_transfer("e-2", destination_id="d-2", destination=other)).answer["state"]
        == "settled"
    )
    bank.book.behave_well()
    assert bank.restart().submit(a_transfer("e-3")).answer["state"] == "settled"


def test_every_credit_gets_a_statement_line_of_its_own(bank: Bank) -> None:
    lines = bank.book.credit([a_credit(), a_credit()]) + bank.restart().credit([a_credit()])
    assert len(set(lines)) == 3


def test_a_new_journal_never_repeats_the_statement_lines_of_an_old_one(bank: Bank, tmp_path: Path) -> None:
    other = Bank(tmp_path / "other")
    assert bank.book.credit([a_credit()]) != other.book.credit([a_credit()])
    other.journal.close()


def test_credits_with_a_key_are_booked_once(bank: Bank) -> None:
    lines = bank.book.credit([a_credit(), a_credit("RF-2")], "key")
    assert bank.book.credit([a_credit(), a_credit("RF-2")], "key") == lines
    assert bank.restart().credit([a_credit(), a_credit("RF-2")], "key") == lines
    assert bank.book.counts()["totals"]["credited"] == {"EUR": 1_000}
    with pytest.raises(Refused) as refused:
        bank.book.credit([a_credit()], "key")
    assert refused.value.status == HTTPStatus.UNPROCESSABLE_ENTITY


def test_no_more_is_taken_back_than_was_credited(bank: Bank) -> None:
    bank.book.credit([a_credit(amount=500)])
    with pytest.raises(Refused) as refused:
        bank.book.debit([a_debit(amount=300), a_debit(amount=201)])
    assert refused.value.body["field"] == "1.amount"
    bank.book.debit([a_debit(amount=300), a_debit(amount=200)], "key")
    assert len(bank.book.debit([a_debit(amount=300), a_debit(amount=200)], "key")) == 2
    with pytest.raises(Refused):
        bank.restart().debit([a_debit(amount=1)])


def test_lines_stay_to_be_published_until_they_are_marked_and_kinds_are_not_mixed(bank: Bank) -> None:
    stopping = threading.Event()
    credited = bank.book.credit([a_credit(), a_credit()])
    debited = bank.book.debit([a_debit()])

    def waiting(book: Book) -> list[str]:
        return [line["statement_line"] for line in book.wait_for_statement(stopping, 100, timeout_s=0)]

    assert waiting(bank.book) == credited
    assert waiting(bank.restart()) == credited
    bank.book.mark_published(credited, "m-1")
    assert waiting(bank.book) == debited
    assert waiting(bank.restart()) == debited
    bank.book.mark_published(debited, "m-2")
    assert waiting(bank.book) == []
    assert bank.restart().unpublished == 0
