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
