"""The work of a rank: its share of every group of artifacts, until the store has all of them.

Whole artifacts go to the rank that is free next. `UnitWork` is shared unit by unit, so that one artifact keeps all
devices busy: rank 0 takes the locks of a chunk of artifacts, all ranks write their units into the drafts, and rank 0
joins them. Only rank 0 decides which artifacts are missing, so that no two ranks can differ.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path

from lorabench.base import UserError
from lorabench.config.schemas import TrainerSpec
from lorabench.engine.artifact import Artifact, batches
from lorabench.engine.group import Group, watch_parent
from lorabench.engine.job import Make
from lorabench.engine.store import Store, key_of
from lorabench.engine.work import UnitWork
from lorabench.engine.workers import use_threads

CHUNK = 64  # artifacts whose locks rank 0 holds at a time
SEND_EVERY = 0.2  # seconds between two messages to the progress bar
WHOLE = 1000  # counts per unit of cost, since the counters of the key-value store are integers


def serve(store: Store, trainer: TrainerSpec, groups: Sequence[Sequence[Artifact]], line: Connection) -> None:
    """Run a rank: compute its share of all groups.

    Args:
        store: The store.
        trainer: Numbers of devices and threads.
        groups: The artifacts of the run, see `artifact.waves`.
        line: Connection to the parent. The first rank of a node sends the address of the key-value store. Rank 0 also
            sends the progress of all ranks.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    watch_parent(parent.pid)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):  # handled by the parent, as for worker processes
        signal.signal(number, signal.SIG_IGN)
    use_threads(trainer.threads)
    with Group.join() as group:
        if group.rank % trainer.devices == 0:
            line.send(group.place)
        check_same(group, groups)
        for number, artifacts in enumerate(groups):
            stage = artifacts[0].stage
            missing = group.broadcast([each.key for each in artifacts if store.find(each) is None])
            wanted = [each for each in artifacts if each.key in set(missing)]
            teller = Teller(group, stage, number, len(wanted), line)
            in_units = [each for each in wanted if isinstance(each.work, UnitWork)]
            for start in range(0, len(in_units), CHUNK):
                make_units(group, store, in_units[start : start + CHUNK], teller)
            jobs = [Make(store, several) for several in batches([each for each in wanted if each not in in_units])]
            for index in group.claim(str(number), len(jobs)):
                jobs[index](teller.of(jobs[index].cost, jobs[index].steps))
                teller.finished(len(jobs[index].artifacts))
            group.barrier()
            teller.stop()


def check_same(group: Group, groups: Sequence[Sequence[Artifact]]) -> None:
    """Check that all nodes have the same artifacts to compute.

    Raises:
        UserError: If the nodes were given different commands.
    """
    mine = key_of("run", {"keys": [[each.key for each in artifacts] for artifacts in groups]})
    if group.broadcast(mine) != mine:
        raise UserError("the nodes were given different commands; use the same one on each, with the same files there")


def make_units(group: Group, store: Store, artifacts: Sequence[Artifact], teller: Teller) -> None:
    """Compute artifacts of one stage by all ranks together.

    Args:
        group: The ranks.
        store: The store.
        artifacts: Artifacts of one stage whose work has units.
        teller: Receiver of the progress.
    """
    by_key = {each.key: each for each in artifacts}
    if group.rank > 0:
        share_units(group, store, [by_key[key] for key in group.broadcast()], teller)
        return
    agreed: list[str] = []

    def make(drafts: dict[str, Path]) -> None:
        agreed.extend(group.broadcast([key for key in by_key if key in drafts]))
        asked = [by_key[key] for key in agreed]
        share_units(group, store, asked, teller)
        for each in asked:
            work_of(each).join(drafts[each.key])

    store.get_or_make_all(artifacts, make)
    if not agreed:  # another run has made them all meanwhile
        group.broadcast([])
    teller.finished(len(artifacts))


def share_units(group: Group, store: Store, artifacts: Sequence[Artifact], teller: Teller) -> None:
    """Compute this rank's units of the artifacts into their drafts, and wait until all ranks have done so.

    Args:
        group: The ranks.
        store: The store.
        artifacts: The same artifacts in all ranks.
        teller: Receiver of the progress.
    """
    if not artifacts:
        return
    units, costs = [work_of(each).units for each in artifacts], [each.cost for each in artifacts]
    for each, numbers in zip(artifacts, shares(units, costs, group.size)[group.rank], strict=True):
        if numbers:
            draft = store.draft(each.key)
            with store.explained(draft):
                work_of(each).compute(numbers, draft, teller.of(each.cost, each.steps))
    group.barrier()


def shares(units: Sequence[int], costs: Sequence[float], size: int) -> list[list[list[int]]]:
    """Return the units of each artifact for each rank: contiguous units, and about the same cost for each rank.

    >>> shares([2, 1], [4.0, 2.0], 2)
    [[[0], []], [[1], [0]]]
    """
    each = [(item, unit, costs[item] / count) for item, count in enumerate(units) for unit in range(count)]
    ends = list(accumulate(cost for *_, cost in each))
    found: list[list[list[int]]] = [[[] for _ in units] for _ in range(size)]
    for (item, unit, cost), end in zip(each, ends, strict=True):
        found[min(int(size * (end - cost / 2) / ends[-1]), size - 1)][item].append(unit)
    return found


def work_of(artifact: Artifact) -> UnitWork:
    """Return the artifact's work, which consists of units."""
    assert isinstance(artifact.work, UnitWork)
    return artifact.work


class Teller:
    """Counts the progress of a stage in the key-value store. In rank 0 it sends the sum of all ranks to the parent.

    Args:
        group: The ranks.
        stage: Name of the stage.
        number: Number of the stage, for its counter.
        count: Number of artifacts of the stage.
        line: Connection to the parent.
    """

    def __init__(self, group: Group, stage: str, number: int, count: int, line: Connection) -> None:
        self.group, self.stage, self.number, self.count, self.line = group, stage, number, count, line
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.send, daemon=True) if group.rank == 0 and count else None
        if self.thread:
            self.thread.start()

    def of(self, cost: float, steps: int) -> Callable[[int], None]:
        """Return the progress function of one job, which takes the number of steps done so far."""
        before = 0

        def progress(done: int) -> None:
            nonlocal before
            now = int(WHOLE * cost * min(done / max(steps, 1), 1.0))
            self.group.add("work", now - before)
            before = now

        return progress

    def finished(self, artifacts: int) -> None:
        """Count artifacts as finished."""
        self.group.add(f"finished {self.number}", artifacts)

    def send(self) -> None:
        """Send the progress to the parent until `stop` is called."""
        while not self.over.wait(SEND_EVERY):
            work, finished = (self.group.add(name, 0) for name in ("work", f"finished {self.number}"))
            self.line.send((self.stage, finished, self.count, work / WHOLE))

    def stop(self) -> None:
        """End the messages."""
        self.over.set()
        if self.thread:
            self.thread.join()
