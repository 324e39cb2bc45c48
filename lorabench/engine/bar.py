"""One progress bar with the time left for the whole job; its unit is the cost of an artifact."""

import sys
import time
from collections.abc import Sequence
from typing import Protocol

from tqdm import tqdm

LAYOUT = "{desc:<18} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"


class Job(Protocol):
    """What the bar counts: `steps` of progress that together have a `cost`."""

    @property
    def steps(self) -> int: ...

    @property
    def cost(self) -> float: ...


class Bar:
    """A context manager that draws the bar.

    It appears with the first work done, so that a mistake is a single line.

    Args:
        work: Cost of all jobs together.
        name: Text before the first stage has begun.
    """

    def __init__(self, work: float, name: str = "") -> None:
        self.work, self.text, self.reached = work, name, 0.0
        self.live = sys.stderr.isatty()
        self.began = time.time()
        self.bar: tqdm | None = None
        self.jobs: Sequence[Job] = []
        self.done: dict[int, float] = {}

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def start(self, stage: str, jobs: Sequence[Job]) -> None:
        """Begin the next stage; its jobs are called by their index from now on."""
        self.jobs, self.done, self.finished = jobs, {}, 0
        self.describe(stage, 0, len(jobs))
        self.stage = stage

    def advance(self, index: int, steps: int) -> None:
        job = self.jobs[index]
        before = self.done.get(index, 0.0)
        self.done[index] = max(job.cost * min(steps / max(job.steps, 1), 1.0), before)
        self.reach(self.reached + self.done[index] - before)

    def complete(self, index: int) -> None:
        self.advance(index, max(self.jobs[index].steps, 1))
        self.finished += 1
        self.describe(self.stage, self.finished, len(self.jobs))

    def reach(self, work: float) -> None:
        """So much of the whole is done."""
        step = min(work, self.work) - self.reached
        if step <= 0:
            return
        if self.bar is None:
            every = 0.2 if self.live else 10  # seconds: a log file is not a screen
            self.bar = tqdm(total=self.work, desc=self.text, bar_format=LAYOUT, smoothing=0.05, mininterval=every)
            self.bar.start_t = self.began  # the elapsed time is that of the whole
        self.reached += step
        self.bar.update(step)

    def finish(self) -> None:
        self.describe("report", 0, 0)
        self.reach(self.work)

    def clear(self) -> None:
        """Take it off the screen."""
        if self.bar is not None:
            self.bar.leave = False
            self.bar.close()

    def describe(self, stage: str, finished: int, count: int) -> None:
        numbers = f" {finished}/{count}" if count else ""
        self.text = f"{stage}{numbers}"
        if self.bar is not None:
            self.bar.set_description_str(self.text, refresh=self.live)
