"""Compute the artifacts that a store lacks, in worker processes or by ranks on one or several nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lorabench.config.schemas import TrainerSpec
from lorabench.engine.artifact import Artifact, batches, waves
from lorabench.engine.bar import Bar
from lorabench.engine.devices import VISIBLE, claim, claim_here
from lorabench.engine.job import Make
from lorabench.engine.store import Store
from lorabench.engine.workers import Pool

Show = Callable[[Artifact], None]


def make(
    store: Store,
    trainer: TrainerSpec,
    targets: Sequence[Artifact],
    show: Show | None = None,
    extra: float = 0.0,
    logs: Path | None = None,
) -> None:
    """Compute the targets and all their inputs that the store lacks.

    Args:
        store: The store.
        trainer: Numbers of workers, or of devices and nodes.
        targets: The artifacts that are needed.
        show: Called with each artifact once the store has it, in order.
        extra: Cost of the work that follows, as a part of the progress bar.
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
    """Compute missing artifacts by worker processes. See `make` for the arguments."""
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
