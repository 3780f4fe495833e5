"""A bank at the edge: the test writes down what it answers and reads what it was asked."""

import itertools
from collections.abc import Iterable, Sequence

from workers.payout.bank import BankUnavailable
from workers.payout.transfers import BankWord, ReturnedTransfer, TransferAnswer, TransferInstruction

PENDING = TransferAnswer(BankWord.PENDING)
SETTLED = TransferAnswer(BankWord.SETTLED)
REJECTED = TransferAnswer(BankWord.REJECTED, "AC04")
NO_ANSWER = TransferAnswer(BankWord.UNKNOWN)
NEVER_SEEN = TransferAnswer(BankWord.NEVER_SEEN)

# Where a reader of the list of returns has come to is kept in the database, whatever bank a test opens.
_positions = itertools.count(1)


class ScriptedBank:
    """Implements the `Bank` protocol; the last answer of a script is repeated."""

    def __init__(
        self, *, submit: Iterable[TransferAnswer] = (SETTLED,), find: Iterable[TransferAnswer] = (NO_ANSWER,)
    ) -> None:
        self._submit = list(submit)
        self._find = list(find)
        self.submitted: list[TransferInstruction] = []
        self.asked: list[str] = []
        self.returned: list[ReturnedTransfer] = []
        self.is_away = False

    def submit(self, instruction: TransferInstruction) -> TransferAnswer:
        self.submitted.append(instruction)
        return _next(self._submit)

    def find(self, end_to_end_id: str) -> TransferAnswer:
        self.asked.append(end_to_end_id)
        return _next(self._find)

    def returns_after(self, position: int, limit: int) -> Sequence[ReturnedTransfer]:
        if self.is_away:
            raise BankUnavailable("the bank is away")
        return [entry for entry in self.returned if entry.position > position][:limit]

    def sends_back(self, end_to_end_id: str, reason: str = "AC04") -> None:
        """A transfer that had settled comes back."""
        self.returned.append(ReturnedTransfer(next(_positions), end_to_end_id, reason))


def _next(script: list[TransferAnswer]) -> TransferAnswer:
    return script.pop(0) if len(script) > 1 else script[0]


class MoodyBank:
    """A bank that answers in the mood it is in and remembers what it has really done."""

    def __init__(self) -> None:
        self.mood = "settle"
        self.words: dict[str, BankWord] = {}
        self.returned: list[ReturnedTransfer] = []

    def submit(self, instruction: TransferInstruction) -> TransferAnswer:
        id_ = instruction.end_to_end_id
        assert id_ not in self.words, "sent again, though the bank has it"
        if self.mood == "lose":
            return TransferAnswer(BankWord.UNKNOWN)
        self.words[id_] = {
            "settle": BankWord.SETTLED,
            "reject": BankWord.REJECTED,
            "accept": BankWord.PENDING,
            "accept in silence": BankWord.PENDING,
        }[self.mood]
        return TransferAnswer(BankWord.UNKNOWN if self.mood == "accept in silence" else self.words[id_])

    def find(self, end_to_end_id: str) -> TransferAnswer:
        return TransferAnswer(self.words.get(end_to_end_id, BankWord.NEVER_SEEN))

    def returns_after(self, position: int, limit: int) -> Sequence[ReturnedTransfer]:
        return [entry for entry in self.returned if entry.position > position][:limit]

    def decides(self, word: BankWord) -> None:
        """Settle or reject everything that is pending."""
        for id_ in [id_ for id_, kept in self.words.items() if kept is BankWord.PENDING]:
            self.words[id_] = word

    def sends_back(self, end_to_end_id: str) -> None:
        """A transfer that had settled comes back."""
        self.words[end_to_end_id] = BankWord.RETURNED
        self.returned.append(ReturnedTransfer(next(_positions), end_to_end_id, "AC04"))
