from hypothesis import given
from hypothesis import strategies as st

from infra.rabbitmq.consumer import Ack, TagTracker


class Channel:
    """RabbitMQ's side: what is unacknowledged, and its reaction to each frame."""

    def __init__(self, delivered: int) -> None:
        self.outstanding = set(range(1, delivered + 1))

    def receive(self, ack: Ack) -> set[int]:
        assert ack.tag in self.outstanding, "RabbitMQ closes the channel on a tag that it does not know"
        taken = {tag for tag in self.outstanding if tag <= ack.tag} if ack.multiple else {ack.tag}
        self.outstanding -= taken
        return taken


@given(st.integers(1, 60).flatmap(lambda n: st.permutations(range(1, n + 1))), st.data())
def test_exactly_what_is_finished_is_acknowledged_in_whatever_order_it_finishes(
    order: list[int], data: st.DataObject
) -> None:
    channel, tracker, finished = Channel(len(order)), TagTracker(), set[int]()
    while order:
        size = data.draw(st.integers(1, len(order)))
        batch, order = order[:size], order[size:]
        finished |= set(batch)
        taken: set[int] = set()
        for ack in tracker.finish(batch):
            taken |= channel.receive(ack)
        assert taken == set(batch)
        assert channel.outstanding == set(range(1, len(channel.outstanding) + len(finished) + 1)) - finished


def test_a_later_batch_never_takes_an_unfinished_earlier_one_with_it() -> None:
    tracker = TagTracker()
    assert tracker.finish([3, 4]) == [Ack(3, multiple=False), Ack(4, multiple=False)]
    assert tracker.finish([1, 2]) == [Ack(2, multiple=True)]
    assert tracker.finish([5, 6, 7]) == [Ack(7, multiple=True)]


def test_a_whole_batch_in_order_is_one_frame() -> None:
    assert TagTracker().finish(range(1, 257)) == [Ack(256, multiple=True)]
