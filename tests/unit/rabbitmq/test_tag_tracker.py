from hypothesis import given
from hypothesis import strategies as st

from infra.rabbitmq.session import Ack, TagTracker


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
    everything = len(order)
    channel, tracker, finished = Channel(everything), TagTracker(), set[int]()
    while order:
        size = data.draw(st.integers(1, len(order)))
        batch, order = order[:size], order[size:]
        finished |= set(batch)
        tracker.finish(batch)
        patient = bool(order) and data.draw(st.booleans())
        for ack in tracker.acks(patient=patient):
            assert channel.receive(ack) <= finished
        assert channel.outstanding >= set(range(1, everything + 1)) - finished
        if not patient:
            assert channel.outstanding == set(range(1, everything + 1)) - finished
        assert tracker.waiting == bool(channel.outstanding & finished)


def test_a_later_batch_never_takes_an_unfinished_earlier_one_with_it() -> None:
    tracker = TagTracker()
    tracker.finish([3, 4])
    assert tracker.acks(patient=True) == []
    assert tracker.acks(patient=False) == [Ack(3, multiple=False), Ack(4, multiple=False)]
    tracker.finish([1, 2])
    assert tracker.acks(patient=True) == [Ack(2, multiple=True)]
    tracker.finish([5, 6, 7])
    assert tracker.acks(patient=True) == [Ack(7, multiple=True)]


def test_batches_that_end_in_another_order_share_one_frame_where_there_is_patience() -> None:
    tracker = TagTracker()
    tracker.finish(range(257, 513))
    assert tracker.acks(patient=True) == []
    assert tracker.waiting
    tracker.finish(range(1, 257))
    assert tracker.acks(patient=True) == [Ack(512, multiple=True)]
    assert not tracker.waiting
