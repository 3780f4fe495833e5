"""Cut a batch so that no key stands twice in one set-based statement."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain
from typing import TypeVar

Item = TypeVar("Item")


def in_rounds(items: Sequence[Item], keys_of: Callable[[Item], Iterable[Hashable]]) -> list[list[Item]]:
    """
    Split items into rounds in which every key stands once; order is kept among items that share a key.

    A batch without repeats, the usual case, is one round.
    """
    keys_of_items = [tuple(keys_of(item)) for item in items]
    all_keys = list(chain.from_iterable(keys_of_items))
    if len(set(all_keys)) == len(all_keys):
        return [list(items)] if items else []
    rounds: list[list[Item]] = []
    next_round: dict[Hashable, int] = {}
    for item, keys in zip(items, keys_of_items, strict=True):
        number = max((next_round.get(key, 0) for key in keys), default=0)
        while len(rounds) <= number:
            rounds.append([])
        rounds[number].append(item)
        next_round.update(dict.fromkeys(keys, number + 1))
    return rounds
