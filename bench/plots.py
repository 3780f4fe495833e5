"""The two pictures: speed against the size of the ledger, and the lag in a storm."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from storm import Storm


def plot_growth(path: Path, points: Sequence[tuple[int, float]]) -> None:
    """Orders per second (the median of the rounds) by how many postings were booked before."""
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot([postings for postings, _ in points], [speed for _, speed in points], marker="o")
    axes.set_xscale("symlog", linthresh=100_000)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("postings in the ledger before")
    axes.set_ylabel("orders per second")
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def plot_storm(path: Path, storm: Storm) -> None:
    """What came due and what was released, second by second, and the worst lag of what was released."""
    figure, (flow, lag) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    seconds = [second for second, *_ in storm.by_second]
    flow.plot(seconds, [due for _, due, _, _ in storm.by_second], label="came due")
    flow.plot(seconds, [released for _, _, released, _ in storm.by_second], label="released")
    flow.set_ylabel("holds a second")
    flow.legend()
    lag.plot(seconds, [worst for *_, worst in storm.by_second], color="tab:red")
    lag.set_ylabel("worst lag, seconds")
    lag.set_xlabel("seconds since the first came due")
    for axes in (flow, lag):
        axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
