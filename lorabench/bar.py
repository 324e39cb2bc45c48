"""One progress bar with the time left for the whole job; its unit is one UNet row."""

import sys

from tqdm import tqdm

from lorabench.plan import Make


class Bar:
    """A context manager; work: the cost of all jobs together (Item.cost)."""

    def __init__(self, work: float) -> None:
        layout = "{desc:<18} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"
        self.live = sys.stderr.isatty()
        every = 0.2 if self.live else 10  # seconds: a log file is not a screen
        self.bar = tqdm(total=work, bar_format=layout, smoothing=0.05, mininterval=every)
        self.jobs: list[Make] = []
        self.done: dict[int, float] = {}

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start(self, stage: str, jobs: list[Make]) -> None:
        """Jobs of the next stage, to be named by their index from now on."""
        self.jobs, self.done, self.finished = jobs, {}, 0
        self.describe(stage, 0, len(jobs))
        self.stage = stage

    def advance(self, index: int, steps: int) -> None:
        job = self.jobs[index]
        share = job.cost * min(steps / max(job.steps, 1), 1.0)
        self.bar.update(share - self.done.get(index, 0.0))
        self.done[index] = share

    def complete(self, index: int) -> None:
        self.advance(index, max(self.jobs[index].steps, 1))
        self.finished += 1
        self.describe(self.stage, self.finished, len(self.jobs))

    def reach(self, stage: str, finished: int, count: int, work: float) -> None:
        """The same where the jobs are counted elsewhere: `finished` of `count` of the stage, `work` of the whole."""
        self.describe(stage, finished, count)
        self.bar.update(max(min(work, self.bar.total) - self.bar.n, 0.0))

    def finish(self) -> None:
        self.describe("report", 0, 0)
        self.bar.update(self.bar.total - self.bar.n)

    def describe(self, stage: str, finished: int, count: int) -> None:
        numbers = f" {finished}/{count}" if count else ""
        self.bar.set_description_str(f"{stage}{numbers}", refresh=self.live)
