"""What is broken, one after another in an order that the seed decides; each fault heals before the next."""

import random
import threading
import time
from collections.abc import Callable, Sequence

import httpx

from chaos.cables import Cable
from chaos.world import World

# For a bank that has just been killed to come back, on a busy machine.
_BANK_SECONDS = 120
_COMMIT_SECONDS = 30.0

Tell = Callable[[str], None]


class Faults:
    """The faults of one run. Workers are killed in between and beside them, by a thread of their own."""

    def __init__(self, world: World, draw: random.Random, note: Tell, tell: Tell) -> None:
        self._world = world
        self._draw = draw
        self._note = note
        self._tell = tell
        self.all: dict[str, Callable[[], None]] = {
            "PostgreSQL killed with -9": self._kill_database,
            "a broker node killed with -9": self._kill_node,
            "a broker node stopped": self._stop_node,
            "a broker node partitioned away": self._partition_node,
            "all broker nodes killed with -9": self._kill_broker,
            "connections cut right after COMMIT": self._cut_commits,
            "connections cut in mid-frame": self._cut_frames,
            "all connections cut": self._cut_everything,
            "database unreachable": self._unplug_database,
            "broker unreachable": self._unplug_broker,
            "the bank falls silent after accepting": self._silence_bank,
            "the bank killed with -9": self._kill_bank,
        }

    def inflict(
        self, stopping: threading.Event, *, only: Sequence[str] = (), rounds: int | None = None
    ) -> None:
        """Go through the faults in a drawn order, again and again, or for so many rounds."""
        names = sorted(only or self.all)
        done = 0
        while rounds is None or done < rounds:
            for name in self._draw.sample(names, len(names)):
                if stopping.is_set():
                    return
                self._note(name)
                self.all[name]()
                stopping.wait(self._draw.uniform(0.5, 1.5))
            done += 1

    def kill_workers(self, stopping: threading.Event, *, every_seconds: float) -> None:
        """Kill a worker that is drawn, again and again."""
        draw = random.Random(self._draw.random())
        while not stopping.wait(draw.uniform(0.5, 1.5) * every_seconds):
            # One at work rather than one that is only starting; on a slow machine that is what most do.
            name = draw.choice(self._world.workers_at_work or self._world.workers)
            self._tell(f"{name} killed with -9")
            self._world.kill(name)

    def _pause(self, shortest: float, longest: float) -> None:
        time.sleep(self._draw.uniform(shortest, longest))

    def _kill_database(self) -> None:
        self._world.kill_database()
        self._pause(0.2, 2)
        self._world.start_database()

    def _kill_node(self) -> None:
        node = self._draw.choice(self._world.cluster.nodes)
        self._world.kills["RabbitMQ node"] += 1
        node.kill()
        self._pause(0.5, 2)
        node.start()
        node.wait_until_ready()

    def _stop_node(self) -> None:
        node = self._draw.choice(self._world.cluster.nodes)
        node.stop()
        self._pause(0.5, 2)
        node.start()
        node.wait_until_ready()

    def _partition_node(self) -> None:
        node = self._draw.choice(self._world.cluster.nodes)
        node.partition()
        self._pause(3, 6)
        node.heal()
        node.wait_until_ready()

    def _kill_broker(self) -> None:
        self._world.kills["RabbitMQ node"] += len(self._world.cluster.nodes)
        self._world.cluster.kill()
        self._pause(0.5, 1)
        self._world.cluster.start()

    def _cut_commits(self) -> None:
        cable = self._world.database_cable
        before = cable.commits_cut
        cable.cut_at_commits(self._draw.randint(3, 8))
        # Everybody may still be recovering from the fault before, and commit nothing for a while.
        deadline = time.monotonic() + _COMMIT_SECONDS
        while cable.commits_cut == before and time.monotonic() < deadline:
            time.sleep(0.05)
        self._pause(1.5, 3)

    def _cut_frames(self) -> None:
        for cable in self._draw.sample(self._cables, len(self._cables)):
            cable.cut_in_mid_frame(self._draw.randint(3, 8))
            self._pause(0.3, 1)

    def _cut_everything(self) -> None:
        for cable in self._cables:
            cable.cut()

    def _unplug_database(self) -> None:
        self._world.database_cable.unplug()
        self._pause(1, 4)
        self._world.database_cable.plug()

    def _unplug_broker(self) -> None:
        self._world.broker_cable.unplug()
        self._pause(1, 4)
        self._world.broker_cable.plug()

    def _silence_bank(self) -> None:
        self._bank_behaves("time_out_after_accepting")
        self._pause(2, 4)
        self._bank_behaves("settle")

    def _kill_bank(self) -> None:
        self._world.kill("bank")

    def _bank_behaves(self, behaviour: str) -> None:
        # It may be on its way back up.
        deadline = time.monotonic() + _BANK_SECONDS
        while True:
            try:
                url = f"{self._world.system.bank_url}/behaviour"
                httpx.put(
                    url, json={"behaviour": behaviour, "delay_seconds": 0.5}, timeout=5
                ).raise_for_status()
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    @property
    def _cables(self) -> Sequence[Cable]:
        world = self._world
        return [world.broker_cable, world.database_cable, world.outside_cable]
