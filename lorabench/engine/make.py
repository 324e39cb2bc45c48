"""Compute the artifacts that a store lacks: in worker processes, or by the ranks of one or several nodes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lorabench.base import UserError
from lorabench.config.schemas import TrainerSpec
from lorabench.engine.artifact import Artifact, batches, waves
from lorabench.engine.bar import Bar
from lorabench.engine.devices import VISIBLE, claim, claim_here
from lorabench.engine.store import Store
from lorabench.engine.work import BatchWork, Progress
from lorabench.engine.workers import Pool

Show = Callable[[Artifact], None]


@dataclass(frozen=True)
class Make:
    """One call of a worker: an artifact into the store, or several of one batch.

    Args:
        logs: Folder for the log of a failure, which then ends only this call; None raises it.
    """

    store: Store
    artifacts: tuple[Artifact, ...]
    logs: Path | None = None

    @property
    def steps(self) -> int:
        return sum(each.steps for each in self.artifacts)

    @property
    def cost(self) -> float:
        return sum(each.cost for each in self.artifacts)

    def __call__(self, progress: Progress) -> None:
        try:
            self.compute(progress)
        except Exception as error:
            if self.logs is None:
                raise
            self.logs.mkdir(parents=True, exist_ok=True)
            text = str(error) if isinstance(error, UserError) else traceback.format_exc()
            for each in self.artifacts:
                (self.logs / f"{each.key}.txt").write_text(text)

    def compute(self, progress: Progress) -> None:
        first, *others = self.artifacts
        if not others:
            self.store.get_or_make(first, lambda folder: first.work(folder, progress))
            return
        works = {each.key: each.work for each in self.artifacts}

        def together(drafts: dict[str, Path]) -> None:
            lacking = [work for key in drafts if isinstance(work := works[key], BatchWork)]
            lacking[0].run(lacking, list(drafts.values()), progress)

        self.store.get_or_make_all(self.artifacts, together)


def make(
    store: Store,
    trainer: TrainerSpec,
    targets: Sequence[Artifact],
    show: Show | None = None,
    extra: float = 0.0,
    logs: Path | None = None,
) -> None:
    """Compute the targets, and everything that they are made of, unless the store has it.

    Args:
        trainer: Number of workers, or of devices and nodes.
        show: Called with each artifact once the store has it, in order.
        extra: Cost of the work that follows, as part of the progress bar.
        logs: Folder for the logs of failures, see `Make`. Without it, and with ranks, the first failure ends the run.
    """
    if trainer.devices:
        from lorabench.engine.launch import make_by_ranks

        make_by_ranks(store, trainer, waves(targets), show, extra)
    else:
        make_by_workers(store, trainer, waves(targets), show, extra, logs)


def make_by_workers(
    store: Store,
    trainer: TrainerSpec,
    groups: Sequence[Sequence[Artifact]],
    show: Show | None,
    extra: float,
    logs: Path | None,
) -> None:
    lacking = [[each for each in group if not store.find(each)] for group in groups]
    jobs = [[Make(store, several, logs) for several in batches(group)] for group in lacking]
    cost = sum(job.cost for group in jobs for job in group)
    with ExitStack() as held:
        gpus: list[str] = []
        if cost:
            claimed = claim(trainer.accelerator, 1) if trainer.workers else claim_here(trainer.accelerator)
            gpus = held.enter_context(claimed)
        environment = {VISIBLE: ",".join(gpus)} if gpus else {}
        bar = held.enter_context(Bar(cost + extra))
        pool = held.enter_context(Pool(trainer.workers, trainer.threads, environment))
        for group, missing, calls in zip(groups, lacking, jobs, strict=True):
            keys = {each.key for each in missing}
            shown = [each for each in group if each.key not in keys]
            if calls:
                bar.start(group[0].stage, calls)
            for each in shown:
                if show:
                    show(each)
            for index in pool.run(calls, bar.advance):
                bar.complete(index)
                for each in calls[index].artifacts:
                    if show:
                        show(each)
        bar.finish()
