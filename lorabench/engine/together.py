"""What a rank does: its share of every stage, until the store lacks nothing that the run needs.

LoRAs and merges go by item, each to the rank that is free next. Images and scores go by unit
(lorabench/tasks/units.py), so
that one pair keeps all devices busy: rank 0 takes the locks of a chunk of items, all ranks write their units into the
drafts, and rank 0 joins them. Which items are lacking is for rank 0 to say, so that no two ranks can differ.
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
from lorabench.engine.group import Group, watch_parent
from lorabench.engine.store import key_of
from lorabench.engine.workers import use_threads
from lorabench.tasks.plan import Item, Plan, Stages
from lorabench.tasks.units import Spread

CHUNK = 64  # items whose locks rank 0 holds at a time
TELL_EVERY = 0.2  # seconds between two messages to the progress bar
WHOLE = 1000  # the counters of the board are whole numbers


def serve(plan: Plan, stages: Stages, line: Connection) -> None:
    """The life of a rank.

    line: to the parent. The first rank of a node tells where the group's board is, and of a sole or first node how
    far everything is.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    watch_parent(parent.pid)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):  # as in worker processes: the parent's business
        signal.signal(number, signal.SIG_IGN)
    use_threads(plan.trainer.threads)
    with Group.join() as group:
        if group.rank % plan.trainer.devices == 0:
            line.send(group.place)
        check_same(group, stages)
        for stage, items in stages.items():
            lacking = group.told([item.key for item in items if plan.store.find(stage, item.parts) is None])
            wanted = [item for item in items if item.key in set(lacking)]
            teller = Teller(group, stage, len(wanted), line)
            if wanted and isinstance(wanted[0].work, Spread):
                for start in range(0, len(wanted), CHUNK):
                    make_units(group, plan, wanted[start : start + CHUNK], teller)
            else:
                jobs = plan.jobs(stage, wanted)
                for index in group.claim(stage, len(jobs)):
                    jobs[index](teller.of(jobs[index].cost, jobs[index].steps))
                    teller.finished(len(jobs[index].items))
            group.barrier()
            teller.stop()


def check_same(group: Group, stages: Stages) -> None:
    """UserError where the nodes were given different commands."""
    keys = {stage: [item.key for item in items] for stage, items in stages.items()}
    mine = key_of("run", keys)
    if group.told(mine) != mine:
        raise UserError("the nodes were given different commands; type the same one on each, with the same files there")


def make_units(group: Group, plan: Plan, items: Sequence[Item], teller: Teller) -> None:
    """Make the items, of one stage, all ranks together."""
    stage, by_key = items[0].stage, {item.key: item for item in items}
    if group.rank > 0:
        share_units(group, plan, [by_key[key] for key in group.told()], teller)
        return
    agreed: list[str] = []

    def make(drafts: dict[str, Path]) -> None:
        agreed.extend(group.told([key for key in by_key if key in drafts]))
        asked = [by_key[key] for key in agreed]
        share_units(group, plan, asked, teller)
        for item in asked:
            work_of(item).join(drafts[item.key])

    plan.store.get_or_make_all(stage, [item.parts for item in items], make)
    if not agreed:  # another run has made them all meanwhile
        group.told([])
    teller.finished(len(items))


def share_units(group: Group, plan: Plan, items: Sequence[Item], teller: Teller) -> None:
    """Compute this rank's units of the items, into their drafts; returns when all ranks have."""
    if not items:
        return
    units = [work_of(item).units for item in items]
    for item, numbers in zip(items, shares(units, [item.cost for item in items], group.size)[group.rank], strict=True):
        if numbers:
            draft = plan.store.draft(item.key)
            with plan.store.explained(draft):
                work_of(item).compute(numbers, draft, teller.of(item.cost, item.steps))
    group.barrier()


def shares(units: Sequence[int], costs: Sequence[float], size: int) -> list[list[list[int]]]:
    """The units of each item for each rank: neighbours stay together, and ranks get about the same cost.

    >>> shares([2, 1], [4.0, 2.0], 2)
    [[[0], []], [[1], [0]]]
    """
    each = [(item, unit, costs[item] / count) for item, count in enumerate(units) for unit in range(count)]
    ends = list(accumulate(cost for *_, cost in each))
    found: list[list[list[int]]] = [[[] for _ in units] for _ in range(size)]
    for (item, unit, cost), end in zip(each, ends, strict=True):
        found[min(int(size * (end - cost / 2) / ends[-1]), size - 1)][item].append(unit)
    return found


def work_of(item: Item) -> Spread:
    assert isinstance(item.work, Spread)
    return item.work


class Teller:
    """Counts on the group's board how far a stage is; rank 0 sends the counts of all to the parent."""

    def __init__(self, group: Group, stage: str, count: int, line: Connection) -> None:
        self.group, self.stage, self.count, self.line = group, stage, count, line
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.send, daemon=True) if group.rank == 0 and count else None
        if self.thread:
            self.thread.start()

    def of(self, cost: float, steps: int) -> Callable[[int], None]:
        """The progress function of one job, told the steps done so far."""
        before = 0

        def progress(done: int) -> None:
            nonlocal before
            now = int(WHOLE * cost * min(done / max(steps, 1), 1.0))
            self.group.add("work", now - before)
            before = now

        return progress

    def finished(self, items: int) -> None:
        self.group.add(f"finished {self.stage}", items)

    def send(self) -> None:
        while not self.over.wait(TELL_EVERY):
            work, finished = (self.group.add(name, 0) for name in ("work", f"finished {self.stage}"))
            self.line.send((self.stage, finished, self.count, work / WHOLE))

    def stop(self) -> None:
        self.over.set()
        if self.thread:
            self.thread.join()
