"""A batch is cut so that no key stands twice in one statement."""

from hypothesis import given
from hypothesis import strategies as st

from workers.rounds import in_rounds

# Items of up to two keys each, numbered so that they can be told apart.
batches = st.lists(st.sets(st.integers(0, 4), max_size=2), max_size=20).map(
    lambda keys: [(number, frozenset(of_item)) for number, of_item in enumerate(keys)]
)
Item = tuple[int, frozenset[int]]


def keys_of(item: Item) -> frozenset[int]:
    return item[1]


@given(batches)
def test_every_item_is_in_exactly_one_round(batch: list[Item]) -> None:
    assert sorted(item for round_ in in_rounds(batch, keys_of) for item in round_) == sorted(batch)


@given(batches)
def test_no_key_stands_twice_in_a_round(batch: list[Item]) -> None:
    for round_ in in_rounds(batch, keys_of):
        keys = [key for item in round_ for key in keys_of(item)]
        assert len(keys) == len(set(keys))


@given(batches)
def test_items_that_share_a_key_keep_their_order(batch: list[Item]) -> None:
    place = {item: number for number, round_ in enumerate(in_rounds(batch, keys_of)) for item in round_}
    for first in batch:
        for second in batch:
            if first[0] < second[0] and keys_of(first) & keys_of(second):
                assert place[first] < place[second]


@given(st.lists(st.integers(), unique=True))
def test_a_batch_without_repeats_is_one_round(batch: list[int]) -> None:
    assert in_rounds(batch, lambda item: (item,)) == ([batch] if batch else [])
