"""task=samplers: the sampler with the fewest steps whose scores are not separated from those of many steps.

    python run.py experiments=samplers

The direct merge is sampled from the same noise by each sampler of `task.samplers` at each number of `task.steps`, and
compared with the model's own sampler at `task.reference_steps`. All have the same LoRAs, also if those are trained on
class images. Two settings are separated in a score if the paired difference is significant after Holm's correction over
the numbers of steps of a sampler. Settings that are not separated may still differ; the intervals show by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.config.schemas import SAMPLERS, GenerateSpec
from lorabench.engine.make import make
from lorabench.report import protocols, sensitivity
from lorabench.report.headline import with_headline
from lorabench.report.notes import design_notes
from lorabench.report.sensitivity import Dose
from lorabench.report.sensitivity_page import response_table
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_plan
from lorabench.tasks.plan import Plan
from lorabench.tasks.plan_trainings import Trainings
from lorabench.tasks.rows import Row, rows_with_baselines
from lorabench.tasks.stored_scores import by_label, scores_of


@dataclass(frozen=True, kw_only=True)
class Sampled(Plan):
    """A plan whose images are sampled in another way than those that LoRAs are trained on.

    Args:
        configured: `generate=` as it is configured, for class images and samples of trainings.
    """

    configured: GenerateSpec

    @cached_property
    def trained(self) -> Trainings:
        """Return the builder of the trainings that all settings share."""
        return replace(super().trained, generation=self.configured)


def run(cfg: DictConfig, folder: Path) -> str:
    """Write samplers.csv and samplers.md, and print the text."""
    task, row = cfg.task, Row.of("direct")
    check(list(task.samplers), list(task.steps), task.reference_steps)
    plan = plan_of(cfg, [])
    baselines = rows_with_baselines(row, plan.dataset, plan.pairs)[:-1]
    rows = [*baselines, replace(row, name=name_of("model", task.reference_steps))]
    reference = setting(replace(plan, rows=rows), "model", task.reference_steps)
    doses = [Dose(sampler, steps, name_of(sampler, steps)) for sampler in task.samplers for steps in sorted(task.steps)]
    plans = [setting(replace(plan, rows=[replace(row, name=each.label)]), each.kind, int(each.dose)) for each in doses]
    for each in (reference, *plans):
        check_plan(each)
    make(plan.store, plan.trainer, [artifact for each in (reference, *plans) for artifact in each.all_artifacts()])

    scores = with_headline(pd.concat([scores_of(each) for each in (reference, *plans)]))
    columns, _ = protocols.columns(protocols.ALL, scores)
    values = {column.name: by_label(scores, column) for column in columns}
    response = sensitivity.dose_response(values, doses, rows[-1].name)
    behind, _ = design_notes(scores)
    pairs = f"{len(plan.pairs)} pairs{behind}"
    text = write_samplers(response, task.reference_steps, pairs, plan.generation.images, list(task.shown))
    response.to_csv(folder / "samplers.csv", index=False, float_format="%.6g")
    (folder / "samplers.md").write_text(text, encoding="utf-8")
    print(text)
    return "samplers.md"


def check(samplers: list[str], steps: list[int], reference: int) -> None:
    """Check the settings of the task.

    Raises:
        UserError: If a sampler is unknown, or the numbers of steps are not below that of the reference.
    """
    for each in samplers:
        choose("task.samplers", each, SAMPLERS)
    if not samplers or not steps or min(steps) < 1 or max(steps) >= reference:
        raise UserError(
            f"task.steps={steps} must be from 1 to {reference - 1}, below task.reference_steps; "
            "use task.samplers=[model] task.steps=[8,12,16,25]"
        )


def setting(plan: Plan, sampler: str, steps: int) -> Sampled:
    """Return a plan whose images are sampled in another way."""
    own = replace(plan.generation, sampler=sampler, steps=steps)
    return plan.extended(Sampled, generation=own, configured=plan.generation)


def name_of(sampler: str, steps: int) -> str:
    """Return the label of a setting."""
    return f"{sampler}, {steps} steps"


def fewest_steps(response: pd.DataFrame) -> pd.Series:
    """Return the smallest number of steps, by sampler, from which on no score is separated; NaN if there is none."""
    apart = response.groupby(["kind", "dose"], sort=False)["separated"].any().reset_index().sort_values("dose")
    found = {}
    for sampler, own in apart.groupby("kind", sort=False):
        alike = (~own["separated"]).to_numpy()[::-1].cumprod()[::-1].astype(bool)
        found[sampler] = float(own["dose"][alike].min()) if alike.any() else float("nan")
    return pd.Series(found)


def write_samplers(response: pd.DataFrame, reference: int, pairs: str, images: int, shown: Sequence[str]) -> str:
    """Return the text of samplers.md."""
    fewest = fewest_steps(response)
    found = "; ".join(f"{name}: {'none' if pd.isna(steps) else f'{steps:g}'}" for name, steps in fewest.items())
    return "\n".join(
        [
            *response_table(response, shown, "sampler", "steps"),
            "",
            f"Mean difference to the model's own sampler with {reference} steps over {pairs}, {images} images each, "
            "from the same noise, with 95 % intervals. `~`: p is above 5 % after Holm's correction over the numbers "
            "of steps of a sampler. Other scores are in samplers.csv.",
            "",
            f"Fewest steps from which on no score is separated: {found}.",
            "",
        ]
    )
