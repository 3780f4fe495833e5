"""Cut a batch so that no key stands twice in one set-based statement."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def in_rounds(items: Sequence[Item], keys_of: Callable[[Item], Iterable[Hashable]]) -> list[list[Item]]:
    """
    Split items into rounds in which every key stands once; order is kept among items that share a key.

    A batch without repeats, the usual case, is one round.
    """
    rounds: list[list[Item]] = []
    next_round: dict[Hashable, int] = {}
    for item in items:
        keys = tuple(keys_of(item))
        number = max((next_round.get(key, 0) for key in keys), default=0)
        while len(rounds) <= number:
            rounds.append([])
        rounds[number].append(item)
        next_round.update(dict.fromkeys(keys, number + 1))
    return rounds
