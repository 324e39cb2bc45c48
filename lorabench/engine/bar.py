"""One progress bar with the time left for the whole job; its unit is the cost of an artifact."""

import sys
import time
from collections.abc import Sequence
from typing import Protocol

from tqdm import tqdm

LAYOUT = "{desc:<18} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"


class Costed(Protocol):
    """A piece of work on the bar: `steps` of progress that together have a `cost`."""

    @property
    def steps(self) -> int: ...

    @property
    def cost(self) -> float: ...


class Bar:
    """Context manager for the progress bar.

    The bar appears with the first progress, so that a mistake found before prints a single line.

    Args:
        work: Cost of all jobs together.
        name: Text before the first stage begins.
    """

    def __init__(self, work: float, name: str = "") -> None:
        self.work, self.text, self.reached = work, name, 0.0
        self.live = sys.stderr.isatty()
        self.began = time.time()
        self.bar: tqdm | None = None
        self.jobs: Sequence[Costed] = []
        self.done: dict[int, float] = {}

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def start(self, stage: str, jobs: Sequence[Costed]) -> None:
        """Begin the next stage. From now on, an index means a job of this stage."""
        self.jobs, self.done, self.finished = jobs, {}, 0
        self.describe(stage, 0, len(jobs))
        self.stage = stage

    def advance(self, index: int, steps: int) -> None:
        """Set the steps done by a job. Progress never goes back."""
        job = self.jobs[index]
        before = self.done.get(index, 0.0)
        self.done[index] = max(job.cost * min(steps / max(job.steps, 1), 1.0), before)
        self.reach(self.reached + self.done[index] - before)

    def complete(self, index: int) -> None:
        """Mark a job as finished."""
        self.advance(index, max(self.jobs[index].steps, 1))
        self.finished += 1
        self.describe(self.stage, self.finished, len(self.jobs))

    def reach(self, work: float) -> None:
        """Advance the bar to this cost of finished work."""
        step = min(work, self.work) - self.reached
        if step <= 0:
            return
        if self.bar is None:
            every = 0.2 if self.live else 10  # seconds; fewer lines in a log file
            self.bar = tqdm(total=self.work, desc=self.text, bar_format=LAYOUT, smoothing=0.05, mininterval=every)
            self.bar.start_t = self.began  # elapsed time since the start, not since the first progress
        self.reached += step
        self.bar.update(step)

    def finish(self) -> None:
        """Advance the bar to its end, for the report."""
        self.describe("report", 0, 0)
        self.reach(self.work)

    def clear(self) -> None:
        """Remove the bar from the screen."""
        if self.bar is not None:
            self.bar.leave = False
            self.bar.close()

    def describe(self, stage: str, finished: int, count: int) -> None:
        """Set the text of the bar: the stage, and finished and all jobs if `count` is not 0."""
        numbers = f" {finished}/{count}" if count else ""
        self.text = f"{stage}{numbers}"
        if self.bar is not None:
            self.bar.set_description_str(self.text, refresh=self.live)
