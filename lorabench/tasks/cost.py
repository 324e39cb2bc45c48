"""task=cost: measure time and memory of each method, in fresh processes and without stored results.

The costs in a run's table (`manifest.json`, COSTS in lorabench/report/table.py) come from the run that computed an
artifact, when the machine may have been busy. Here every merge and every set of images is computed `task.repeats`
times, each time in a new process and on an idle device. The process first does the same with two steps, so that weights
are read and kernels are chosen before the clock starts. The table has medians with minimum and maximum. The LoRAs that
a method merges are trained beforehand, once each, and are not a cost of its merge, because methods share them. The same
holds for a backbone, which is trained once per model. Both have columns of their own. The store is temporary.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from lorabench.base import UserError
from lorabench.engine.artifact import Artifact, closure
from lorabench.engine.devices import VISIBLE, claim, device_name
from lorabench.engine.job import Make
from lorabench.engine.store import Store
from lorabench.engine.work import Progress
from lorabench.engine.workers import Pool
from lorabench.merging.learned import LearnedMasks
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_methods
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row, check_rows
from lorabench.tasks.run_manifest import row_costs

WARM = 2  # steps of a merge and of the sampler before the measured ones
IDLE = 0.5  # load of a machine below which it counts as idle
# Costs of run_manifest.row_costs: heading, unit, and whether the table has its ratio to the reference.
COLUMNS = {
    "backbone_seconds": ("s of the backbone (once per model)", 1, False),
    "lora_seconds": ("s per LoRA (shared)", 1, False),
    "learned_parameters": ("learned parameters", 1, False),
    "merge_seconds": ("s to merge", 1, True),
    "merge_denoiser_passes": ("denoiser passes to merge", 1, False),
    "merge_peak_bytes": ("GB to merge", 1e9, False),
    "merge_peak_gpu_bytes": ("GB of the GPU to merge", 1e9, False),
    "seconds_per_image": ("s per image", 1, True),
    "denoiser_passes_per_image": ("denoiser passes per image", 1, False),
}


def run(cfg: DictConfig, folder: Path) -> str:
    """Write cost.csv (median, minimum, maximum), repeats.csv and cost.md, and print the table."""
    rows = rows_of(list(cfg.task.methods))
    if cfg.task.repeats < 1:
        raise UserError(f"task.repeats={cfg.task.repeats} must be at least 1; use task.repeats=3")
    load = load_of_machine()
    with TemporaryDirectory(prefix="store-", dir=folder) as temporary:
        root = Path(temporary)
        plan = plan_of(OmegaConf.merge(cfg, {"store": str(root / "trained")}), rows)  # pyright: ignore[reportArgumentType]
        device_name(plan.trainer.accelerator)  # raises UserError if there is no such device
        check_methods(plan)
        found = pd.DataFrame(measure(plan, cfg.task.repeats, root))
    found.to_csv(folder / "repeats.csv", index=False, float_format="%.6g")
    summed = summary(found)
    summed.to_csv(folder / "cost.csv", float_format="%.6g")
    text = table(summed, found, cfg.reference, plan, load)
    (folder / "cost.md").write_text(text, encoding="utf-8")
    print(text)
    return "cost.md"


def rows_of(names: Sequence[str]) -> list[Row]:
    """Return the rows of the methods."""
    check_rows("task.methods", names, "[direct,duolora]")
    return [Row.of(name) for name in names]


def load_of_machine() -> float:
    """Return the machine's load average of the last minute; warn if the machine is not idle."""
    load = os.getloadavg()[0]
    if load > IDLE:
        print(f"warning: this machine is not idle (load {load:.1f}), so seconds are too high", file=sys.stderr)
    return load


def measure(plan: Plan, repeats: int, root: Path) -> list[dict[str, str | float]]:
    """Return one row per method and repeat, with the costs of `run_manifest.row_costs`."""
    trained = list(closure(trainings(plan)).values())
    stages = sorted({each.stage for each in trained})
    lines: list[dict[str, str | float]] = []
    with fresh(plan) as start, tqdm(total=len(trained) + repeats * len(plan.rows), unit="process") as bar:
        for each in trained:
            bar.set_description(f"training {each.name}")
            start(Warmed((), (Make(plan.store, (each,)),)))
            bar.update()
        for repeat in range(repeats):
            for row in plan.rows:
                bar.set_description(f"{row.name} {repeat + 1}/{repeats}")
                own = replace(plan, rows=[row], store=with_trainings(plan.store, stages, root / f"{row.name}-{repeat}"))
                start(Warmed(makes(warm(own, row, stages, root)), makes(own)))
                lines.append({"method": row.name, "repeat": repeat, **row_costs(own, row)})
                bar.update()
    return lines


def trainings(plan: Plan) -> list[Artifact]:
    """Return all trainings of a plan: LoRAs, and the expert encoders of rows with learned routing."""
    return [*plan.artifacts("personalize"), *(each for cell in plan.cells() for each in plan.encoder(*cell))]


@contextmanager
def fresh(plan: Plan) -> Iterator[Callable[[Warmed], None]]:
    """Yield a function that runs a job in a new process, on a device that no other run of this user has claimed."""
    with claim(plan.trainer.accelerator, 1) as gpus:

        def start(job: Warmed) -> None:
            with Pool(1, plan.trainer.threads, {VISIBLE: ",".join(gpus)} if gpus else {}) as pool:
                for _ in pool.run([job], lambda index, steps: None):
                    pass

        yield start


@dataclass(frozen=True)
class Warmed:
    """A job of a worker: artifacts to compute for the warm-up, then artifacts to measure."""

    before: tuple[Make, ...]
    measured: tuple[Make, ...]

    def __call__(self, progress: Progress) -> None:
        for make in (*self.before, *self.measured):
            make(progress)


def with_trainings(trained: Store, stages: Sequence[str], root: Path) -> Store:
    """Return a new store that has the artifacts of some stages of another store."""
    store = Store.open(root)
    for stage in stages:
        (root / stage).symlink_to(trained.root / stage, target_is_directory=True)
    return store


def makes(plan: Plan) -> tuple[Make, ...]:
    """Return the jobs of all merges and then of all images, one artifact each."""
    return tuple(Make(plan.store, (each,)) for stage in ("merge", "generate") for each in plan.artifacts(stage))


def warm(plan: Plan, row: Row, stages: Sequence[str], root: Path) -> Plan:
    """Return a small version of a plan for the warm-up: the first pair, a few steps, its own store."""
    if isinstance(row.own.merge, LearnedMasks):
        fit = row.own.merge.fit
        row = replace(row, method=row.own.with_settings(fit=replace(fit, steps=min(WARM, fit.steps))))
    return replace(
        plan,
        rows=[row],
        pairs=plan.pairs[:1],
        generation=replace(plan.generation, steps=min(WARM, plan.generation.steps)),
        store=with_trainings(
            Store(root / "trained"), stages, plan.store.root.with_name(f"{plan.store.root.name}-warm")
        ),
    )


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Return the median, minimum (_low) and maximum (_high) of each cost over the repeats, one row per method."""
    known = [cost for cost in COLUMNS if cost in found]
    groups = found[["method", *known]].groupby("method", sort=False)
    middle, least, most = (pd.DataFrame(groups.agg(how)) for how in ("median", "min", "max"))
    together = middle.join(least.add_suffix("_low")).join(most.add_suffix("_high"))
    return together.loc[:, [f"{cost}{end}" for cost in known for end in ("", "_low", "_high")]]


def table(summed: pd.DataFrame, found: pd.DataFrame, reference: str, plan: Plan, load: float) -> str:
    """Return Markdown with the medians, and with ratios to the reference method if it was measured."""
    known = [cost for cost in COLUMNS if cost in summed]
    compared = reference in summed.index
    heads = []
    for title, _, ratio in (COLUMNS[cost] for cost in known):
        heads += [title, *([f"x {reference}"] if compared and ratio else [])]
    lines = [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name, row in summed.iterrows():
        cells = []
        for cost in known:
            _, unit, ratio = COLUMNS[cost]
            cells.append(median(row.to_dict(), cost, unit))
            if compared and ratio:
                cells.append(f"{row[cost] / summed.loc[reference, cost]:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    repeats, pairs, threads = found["repeat"].nunique(), len(plan.pairs), plan.trainer.threads
    notes = [
        f"Medians of {repeats} new processes, each after a warm-up, with [minimum, maximum] if they differ. "
        f"{plan.model_name}, pairs: {pairs}, images per pair: {plan.generation.images}, threads: {threads}. "
        "Memory is that of the whole process with its libraries.",
        "LoRAs and a backbone are trained once each, before the other measurements. Methods share the LoRAs, and all "
        "pairs share the backbone, so the costs of a merge include neither.",
    ]
    if load > IDLE:
        notes.append(f"The machine was not idle (load {load:.1f} before): seconds are not comparable with others.")
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"


def median(row: dict[str, float], cost: str, unit: float) -> str:
    """Return a cost in its unit, with its minimum and maximum if they differ."""
    value, low, high = (row[f"{cost}{end}"] / unit for end in ("", "_low", "_high"))
    if np.isnan(value):
        return ""
    if cost == "learned_parameters":
        return f"{value:,.0f}"
    return f"{value:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{value:.3g} [{low:.3g}, {high:.3g}]"
