"""One chaos run from an empty machine to its account."""

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from workflow_support.desk import database_engine
from workflow_support.system import Terminal

from chaos.accounting import Account, account_for, summary
from chaos.faults import Faults
from chaos.findings import Inspector
from chaos.load import Buyers, Speaker
from chaos.world import DATABASE, World

_AUDIT_PAUSE_SECONDS = 0.5
_LOOK_SECONDS = 0.5

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made of; the same seed draws the same load and the same faults."""

    seed: int
    # Either so long, or so many rounds through all faults.
    seconds: float | None = None
    rounds: int | None = None
    # Which faults; all of them where none is named.
    faults: tuple[str, ...] = ()
    rate: float = 15.0
    kill_worker_every_seconds: float = 2.0
    settle_seconds: float = 180.0
    copies: dict[str, int] = field(
        default_factory=lambda: {"payment": 2, "escrow": 2, "payout": 2, "relay": 2}
    )


@dataclass(slots=True)
class Report:
    """What a run found; `text` is for people."""

    account: Account
    audits: int
    audits_without_database: int
    faults: Counter[str]
    cuts: Counter[str]
    kills: Counter[str]
    ended: list[tuple[str, int]]
    money: str

    @property
    def ok(self) -> bool:
        return self.account.ok and self.audits > 0

    @property
    def text(self) -> str:
        def told(counts: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"

        by_themselves = ", ".join(f"{name} ({code})" for name, code in self.ended) or "none"
        return "\n".join(
            [
                summary(self.account),
                f"  audits while it broke: {self.audits}, the database away: {self.audits_without_database}",
                f"  faults: {told(self.faults)}",
                f"  cut: {told(self.cuts)}",
                f"  killed with -9: {told(self.kills)}",
                f"  ended by themselves: {by_themselves}",
                f"  {self.money}",
            ]
        )


class Audits:
    """`holdfast audit` again and again while everything breaks."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.done = 0
        self.without_database = 0
        self.violations: list[str] = []

    def repeat(self, stopping: threading.Event) -> None:
        while not stopping.wait(_AUDIT_PAUSE_SECONDS):
            self.audit()

    def audit(self) -> None:
        exit_code, said = self._terminal.run(["audit", "--json"])
        try:
            told = json.loads(said)
        except ValueError:
            # One line that says why; the only good reason is that there is no database to ask.
            self.without_database += 1
            return
        self.done += 1
        broken = [check["name"] for check in told["checks"] if not check["ok"]]
        if exit_code != 0 or broken:
            self.violations.append(f"`holdfast audit` exited {exit_code}: {broken}")


def run(options: Options, folder: Path, tell: Tell) -> Report:
    """Carry out a run in a folder of its own; everything it started is stopped again."""
    draw = random.Random(options.seed)
    began = time.monotonic()

    def tell_with_time(line: str) -> None:
        tell(f"{time.monotonic() - began:6.1f} s  {line}")

    world = World(folder, random.Random(draw.random()), options.copies)
    try:
        tell_with_time(f"seed {options.seed}: starting three broker nodes and a database")
        world.start()
        return _Run(options, world, draw, tell_with_time).carry_out()
    finally:
        world.stop()


class _Run:
    def __init__(self, options: Options, world: World, draw: random.Random, tell: Tell) -> None:
        self._options = options
        self._world = world
        self._draw = draw
        self._tell = tell
        self._faults: Counter[str] = Counter()
        self._speakers = [
            Speaker(shop, world.outside_url, random.Random(draw.random()), default_days=3)
            for shop in (
                world.system.a_shop(),
                world.system.a_shop("--funding", "announced", scheme="v1"),
            )
        ]
        for speaker in self._speakers:
            # A line of its own, which breaks unseen; what is said here goes over the speaker's.
            speaker.shop.close()
        self._audits = Audits(Terminal(world.system.environment))

    def carry_out(self) -> Report:
        with contextlib.ExitStack() as beside:
            for speaker in self._speakers:
                beside.enter_context(_in_thread(speaker.listen))
            with _in_thread(self._audits.repeat):
                self._break_everything()
                self._tell("everything is whole again")
                self._world.wait_until_whole()
            with database_engine(self._world.postgres.url(DATABASE)) as engine:
                inspector = Inspector(
                    engine, self._world.system.broker_url, self._world.system.bank_url, self._speakers
                )
                contradictions = [
                    f"not at rest: {count} {name}" for name, count in self._wait_for_rest(inspector).items()
                ]
                self._audits.audit()
                contradictions += self._audits.violations
                contradictions += [
                    f"{speaker.shop.id} heard {speaker.diary.unsigned} messages that nobody signed"
                    for speaker in self._speakers
                    if speaker.diary.unsigned
                ]
                for name in self._world.workers:
                    self._world.hold_back(name)
                account = account_for(
                    [one for speaker in self._speakers for one in speaker.diary.said.values()],
                    inspector.find(contradictions),
                )
                return Report(
                    account,
                    self._audits.done,
                    self._audits.without_database,
                    self._faults,
                    sum((cable.cuts for cable in self._world.cables), Counter()),
                    self._world.kills,
                    self._world.ended,
                    inspector.money(),
                )

    def _break_everything(self) -> None:
        self._tell("load begins")
        faults = Faults(self._world, self._draw, self._note, self._tell)
        buyers = Buyers(self._speakers, self._world.system.bank_url)
        with contextlib.ExitStack() as beside:
            for speaker in self._speakers:
                speaker.enrol_sellers()
            beside.enter_context(_in_thread(buyers.pay))
            for speaker in self._speakers:
                beside.enter_context(
                    _in_thread(
                        lambda stopping, speaker=speaker: speaker.speak(
                            self._options.rate / len(self._speakers), stopping
                        )
                    )
                )
            over = threading.Event()
            if self._options.seconds is not None:
                timer = threading.Timer(self._options.seconds, over.set)
                timer.start()
                beside.callback(timer.cancel)
            # The load ends after the faults have: what is in hand is still said, on cables that are whole.
            beside.callback(self._world.wait_until_whole)
            with _in_thread(
                lambda stopping: faults.kill_workers(
                    stopping, every_seconds=self._options.kill_worker_every_seconds
                )
            ):
                faults.inflict(over, only=self._options.faults, rounds=self._options.rounds)

    def _note(self, line: str) -> None:
        self._faults[line] += 1
        self._tell(line)

    def _wait_for_rest(self, inspector: Inspector) -> dict[str, int]:
        deadline = time.monotonic() + self._options.settle_seconds
        left: dict[str, int] = {"nothing was looked at": 1}
        while left and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            # A node that has just come back may still close a connection.
            with contextlib.suppress(*inspector.interruptions):
                left = inspector.still_to_do()
        self._tell("all is at rest" if not left else f"NOT at rest: {left}")
        return left


@contextmanager
def _in_thread(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let something run beside the block, and raise what it raised."""
    stopping = threading.Event()
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            act(stopping)
        except BaseException as error:  # noqa: BLE001 - raised again below, where somebody sees it
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    if failures:
        raise failures[0]
