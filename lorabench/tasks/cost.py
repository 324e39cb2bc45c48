"""What each method takes, measured and not looked up: nothing from the store, one thing at a time, fresh processes.

The numbers beside scores (`manifest.json`, COSTS in lorabench/report/table.py) are of whichever run made an artifact,
with whatever else ran then. Here every merge and every set of images is computed `task.repeats` times, each time in a
process of its own that has first done the same with two steps, so that weights are read and kernels chosen before the
clock starts. Medians stand in the table with the least and the greatest. A method's own LoRAs are made beforehand, once
each, and are no cost of its merge: methods share them. The store is a temporary one.
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
from lorabench.engine.artifact import closure
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
from lorabench.tasks.run_folder import Outcome

WARM = 2  # steps of a merge and of the sampler before the measured ones
IDLE = 0.5  # load of a machine below which it counts as idle
LORA = "lora_seconds"
# Costs of Outcome.costs, with their heading, a unit, and whether the ratio to the reference says something.
COLUMNS = {
    "learned_parameters": ("learned parameters", 1, False),
    "merge_seconds": ("s to merge", 1, True),
    "merge_denoiser_passes": ("denoiser passes to merge", 1, False),
    "merge_peak_bytes": ("GB to merge", 1e9, False),
    "merge_peak_gpu_bytes": ("GB of the GPU to merge", 1e9, False),
    "seconds_per_image": ("s per image", 1, True),
    "denoiser_passes_per_image": ("denoiser passes per image", 1, False),
}


def run(cfg: DictConfig, folder: Path) -> str:
    """Write cost.csv (medians, least, greatest), repeats.csv and cost.md, and print the table."""
    rows = rows_of(list(cfg.task.methods))
    if cfg.task.repeats < 1:
        raise UserError(f"task.repeats={cfg.task.repeats} measures nothing; use task.repeats=3")
    load = load_of_machine()
    with TemporaryDirectory(prefix="store-", dir=folder) as temporary:
        root = Path(temporary)
        plan = plan_of(OmegaConf.merge(cfg, {"store": str(root / "loras")}), rows)  # pyright: ignore[reportArgumentType]
        device_name(plan.trainer.accelerator)  # is it there?
        check_methods(plan)
        found = pd.DataFrame(measure(plan, cfg.task.repeats, root))
    found.to_csv(folder / "repeats.csv", index=False, float_format="%.6g")
    summed = summary(found)
    summed.to_csv(folder / "cost.csv", float_format="%.6g")
    text = table(summed, found, cfg.reference, plan, load)
    (folder / "cost.md").write_text(text)
    print(text)
    return "cost.md"


def rows_of(names: Sequence[str]) -> list[Row]:
    check_rows("task.methods", names, "[direct,duolora]")
    return [Row.of(name) for name in names]


def load_of_machine() -> float:
    """Processes that ran or waited to, on the mean of the last minute; says so where the machine is not idle."""
    load = os.getloadavg()[0]
    if load > IDLE:
        print(f"this machine is not idle (load {load:.1f}): seconds will be those of a busy one", file=sys.stderr)
    return load


def measure(plan: Plan, repeats: int, root: Path) -> list[dict[str, str | float]]:
    """A row a method and repeat: method, repeat, and the costs of Outcome.costs."""
    loras = list(closure(plan.artifacts("personalize")).values())
    lines: list[dict[str, str | float]] = []
    with fresh(plan) as start, tqdm(total=len(loras) + repeats * len(plan.rows), unit="process") as bar:
        for lora in loras:
            bar.set_description(f"LoRA {lora.name}")
            start(Warmed((), (Make(plan.store, (lora,)),)))
            bar.update()
        for repeat in range(repeats):
            for row in plan.rows:
                bar.set_description(f"{row.name} {repeat + 1}/{repeats}")
                own = replace(plan, rows=[row], store=beside(plan.store, root / f"{row.name}-{repeat}"))
                start(Warmed(makes(warm(own, row, root)), makes(own)))
                lines.append({"method": row.name, "repeat": repeat, **Outcome(root, own, "").costs(row)})
                bar.update()
    return lines


@contextmanager
def fresh(plan: Plan) -> Iterator[Callable[[Warmed], None]]:
    """Runs a job in a process of its own, on a device that nobody else of us has meanwhile."""
    with claim(plan.trainer.accelerator, 1) as gpus:

        def start(job: Warmed) -> None:
            with Pool(1, plan.trainer.threads, {VISIBLE: ",".join(gpus)} if gpus else {}) as pool:
                for _ in pool.run([job], lambda index, steps: None):
                    pass

        yield start


@dataclass(frozen=True)
class Warmed:
    """A job of a worker: artifacts that count, after some that do not."""

    before: tuple[Make, ...]
    measured: tuple[Make, ...]

    def __call__(self, progress: Progress) -> None:
        for make in (*self.before, *self.measured):
            make(progress)


def beside(loras: Store, root: Path) -> Store:
    """A store of its own that has the LoRAs of another."""
    store = Store.open(root)
    (root / "personalize").symlink_to(loras.root / "personalize", target_is_directory=True)
    return store


def makes(plan: Plan) -> tuple[Make, ...]:
    """Merges, then images, one by one."""
    return tuple(Make(plan.store, (each,)) for stage in ("merge", "generate") for each in plan.artifacts(stage))


def warm(plan: Plan, row: Row, root: Path) -> Plan:
    """The same on the first pair with a few steps, in a store of its own."""
    if isinstance(row.own.merge, LearnedMasks):
        fit = row.own.merge.fit
        row = replace(row, method=row.own.with_settings(fit=replace(fit, steps=min(WARM, fit.steps))))
    return replace(
        plan,
        rows=[row],
        pairs=plan.pairs[:1],
        generation=replace(plan.generation, steps=min(WARM, plan.generation.steps)),
        store=beside(Store(root / "loras"), plan.store.root.with_name(f"{plan.store.root.name}-warm")),
    )


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """By method: the median, _low and _high of each cost over the repeats."""
    known = [cost for cost in (*COLUMNS, LORA) if cost in found]
    groups = found[["method", *known]].groupby("method", sort=False)
    middle, least, most = (pd.DataFrame(groups.agg(how)) for how in ("median", "min", "max"))
    together = middle.join(least.add_suffix("_low")).join(most.add_suffix("_high"))
    return together.loc[:, [f"{cost}{end}" for cost in known for end in ("", "_low", "_high")]]


def table(summed: pd.DataFrame, found: pd.DataFrame, reference: str, plan: Plan, load: float) -> str:
    """The medians for people, with ratios to the reference method where it was measured."""
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
        f"Medians of {repeats} fresh processes, each after a warm-up, with the least and greatest where they differ. "
        f"{plan.model_name}, pairs: {pairs}, images each: {plan.generation.images}, threads: {threads}. "
        "Memory is that of the whole process, its libraries included.",
        f"Training one LoRA takes {found[LORA].iloc[0]:.3g} s, which methods share and which is in no column.",
    ]
    if load > IDLE:
        notes.append(f"The machine was not idle (load {load:.1f} beforehand): compare no seconds with those of others.")
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"


def median(row: dict[str, float], cost: str, unit: float) -> str:
    """A cost in its unit, with its spread where there is one."""
    value, low, high = (row[f"{cost}{end}"] / unit for end in ("", "_low", "_high"))
    if np.isnan(value):
        return ""
    if cost == "learned_parameters":
        return f"{value:,.0f}"
    return f"{value:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{value:.3g} [{low:.3g}, {high:.3g}]"
