"""task=sensitivity: which differences can the scores see?

    python run.py experiments=sensitivity

The direct merge is damaged in known ways: a share of each update's energy is removed at random (`task.energy`), one
LoRA has a lower scale (`task.weights`), or the style LoRA is that of another pair. Two seeds of the direct merge, with
other noise and other LoRAs, are the null. The results are the dose-response curves, the smallest separated
doses, the rate of false differences, and the difference that is detectable with 8, 16 and 32 pairs: between the direct
merge and small damage, between methods of a kind (`task.like`: ablations and their methods, learned methods and their
closed forms), and between the direct merge and those of `task.unlike` (lorabench/report/sensitivity.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from lorabench.base import UserError
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.data.pairs import pair as make_pair
from lorabench.data.scenes import Prompts
from lorabench.engine.artifact import Artifact
from lorabench.engine.make import make
from lorabench.report import planned, protocols, sensitivity
from lorabench.report.headline import with_headline
from lorabench.report.notes import design_notes
from lorabench.report.sensitivity import Dose
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_plan
from lorabench.tasks.compare import rows_of as rows_of_methods
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row, check_rows, name_of, rows_with_baselines
from lorabench.tasks.stored_scores import by_label, labeled, scores_of

UNDAMAGED, NULL, OTHER_STYLE = "direct", "direct, another seed", "style of another pair"
SMALL = 0.1  # greatest removed share of energy of rows that count as like the undamaged one


@dataclass(frozen=True)
class Exchanged(Plan):
    """A plan whose pairs have the style LoRA of another pair, and the noise of their own.

    Args:
        own: The pair that each exchanged pair stands for, by the name of the exchanged one.
    """

    own: Mapping[str, Pair] = field(default_factory=dict)

    def seeds(self, pair: Pair) -> list[int]:
        """Return the seeds of the pair that an exchanged pair stands for."""
        return super().seeds(self.own.get(pair.name, pair))

    def score_own(self, row: Row, pair: Pair) -> Artifact:
        """Return the scores of an exchanged pair's images against the references of the pair that it stands for."""
        own = self.own[pair.name]
        return self.scoring.score(f"{OTHER_STYLE} {own.name}", own, self.generate(row, pair), self.seeds(pair))


def run(cfg: DictConfig, folder: Path) -> str:
    """Write sensitivity.csv, detectable.csv, null.csv, sensitivity.md and sensitivity.png, and print the text."""
    from lorabench.report.sensitivity_page import draw_response, write_sensitivity

    task = cfg.task
    rows, doses = rows_of(list(task.energy), list(task.weights))
    unlike, (like, of_a_kind) = unlike_rows(list(task.unlike)), like_rows(list(task.like))
    plan = plan_of(cfg, [])
    if task.null_seed == plan.seed:
        raise UserError(f"task.null_seed={task.null_seed} must differ from seed; use task.null_seed={plan.seed + 1}")
    baselines = rows_with_baselines(rows[0], plan.dataset, plan.pairs)[:-1]
    named = {row.name: row for row in (*baselines, *rows, *unlike, *like)}
    plan = replace(plan, rows=list(named.values()))
    null = replace(plan, rows=[replace(rows[0], name=NULL)], seed=int(task.null_seed))
    exchanged = exchange(plan, Prompts(**cfg.prompts))
    check_plan(plan)
    others = [exchanged.score_own(rows[0], pair) for pair in exchanged.pairs]
    make(plan.store, plan.trainer, [*plan.all_artifacts(), *null.all_artifacts(), *others])

    scores = with_headline(pd.concat([scores_of(plan), scores_of(null), scores_of_exchanged(exchanged, others)]))
    columns, _ = protocols.columns(protocols.ALL, scores)
    values = {column.name: by_label(scores, column) for column in columns}
    doses = [*doses, *([Dose(OTHER_STYLE, 1.0, OTHER_STYLE)] if others else [])]
    response = sensitivity.dose_response(values, doses, UNDAMAGED)
    small = [each.label for each in doses if each.kind == "energy" and each.dose <= SMALL]
    nulls = sensitivity.null_rates(values, UNDAMAGED, NULL, task.splits)
    compared = {
        sensitivity.DAMAGE: [(name, UNDAMAGED) for name in small],
        sensitivity.LIKE: of_a_kind,
        sensitivity.UNLIKE: [(row.name, UNDAMAGED) for row in unlike],
        sensitivity.SEED: [(NULL, UNDAMAGED)],
    }
    limits = sensitivity.detectable(values, compared)
    behind, _ = design_notes(scores)
    text = write_sensitivity(
        response, sensitivity.smallest_dose(response), nulls, limits, f"{len(plan.pairs)} pairs{behind}",
        plan.generation.images, of_a_kind, [row.name for row in unlike], list(task.shown),
    )  # fmt: skip
    for name, found in (("sensitivity", response), ("detectable", limits), ("null", nulls)):
        found.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    (folder / "sensitivity.md").write_text(text, encoding="utf-8")
    draw_response(response, [each for each in task.shown if each in values], folder / "sensitivity.png")
    print(text)
    return "sensitivity.png"


def rows_of(energy: Sequence[float], weights: Sequence[float]) -> tuple[list[Row], list[Dose]]:
    """Return the direct merge followed by its damaged variants, and their doses.

    Raises:
        UserError: If there is no damage, or a dose is out of bounds.
    """
    if not energy or not weights:
        raise UserError("task.energy and task.weights must not be empty; use task.energy=[0.1] task.weights=[0.8]")
    if wrong := [each for each in weights if not 0 <= each < 1]:
        raise UserError(f"task.weights={wrong[0]:g} must be at least 0 and less than 1; use task.weights=[0.9,0.8,0.6]")
    if wrong := [each for each in energy if not 0 < each <= 1]:
        raise UserError(
            f"task.energy={wrong[0]:g} must be greater than 0 and at most 1; use task.energy=[0.05,0.1,0.2]"
        )
    rows, doses = [Row.of(UNDAMAGED)], []
    for share in sorted(energy):
        doses.append(Dose("energy", share, f"energy -{share:g}"))
        rows.append(replace(Row.of("direct+merge.damaged", removed=share), name=doses[-1].label))
    for role in ROLES:
        for weight in sorted(weights, reverse=True):
            doses.append(Dose(f"{role} weight", round(1 - weight, 10), f"{role} {weight:g}"))
            scales = {each: weight if each == role else 1.0 for each in ROLES}
            rows.append(replace(Row.of("custom_weights", "none", **scales), name=doses[-1].label))
    return rows, doses


def unlike_rows(names: Sequence[str]) -> list[Row]:
    """Return the rows of methods that differ from the direct merge in kind.

    Raises:
        UserError: If one is unknown, a baseline, the direct merge, or named twice.
    """
    check_rows("task.unlike", names, "[ties,klora]", baselines="merges nothing")
    if UNDAMAGED in names:
        raise UserError(f"task.unlike names {UNDAMAGED}, which it is compared with; leave it out")
    return [Row.of(name) for name in names]


def like_rows(names: Sequence[str]) -> tuple[list[Row], list[tuple[str, str]]]:
    """Return rows, and the labels of those that are compared: ablations with their methods, and closed forms.

    Raises:
        UserError: If a row is unknown, a baseline, named twice, or has none that it is compared with.
    """
    check_rows("task.like", names, "[ziprank,ziprank_closed]", baselines="merges nothing")
    rows = [replace(row, name=name_of(row)) for row in rows_of_methods(list(names))]
    found = [(each.label, each.against) for each in planned.comparisons([row.name for row in rows], None)
             if each.family in (planned.ABLATIONS, planned.CLOSED)]  # fmt: skip
    if alone := {row.name for row in rows} - {name for pair in found for name in pair}:
        raise UserError(
            f"task.like names {min(alone)} without a row of its kind; use task.like=[klora,klora fixed_choice]"
        )
    return rows, found


def exchange(plan: Plan, prompts: Prompts) -> Exchanged:
    """Return the plan in which each pair has the style of the next pair with another one, if there is any."""
    own: dict[str, Pair] = {}
    pairs = []
    for index, pair in enumerate(plan.pairs):
        following = (*plan.pairs[index + 1 :], *plan.pairs[:index])
        others = (make_pair(pair.contents, each.styles, prompts) for each in following)
        found = next((each for each in others if each.style_name != pair.style_name and each.name not in own), None)
        if found is not None:
            pairs.append(found)
            own[found.name] = pair
    return plan.extended(Exchanged, pairs=pairs, own=own)


def scores_of_exchanged(plan: Exchanged, scored: Sequence[Artifact]) -> pd.DataFrame:
    """Return the scores of the exchanged pairs under the names of their own ones."""
    return pd.concat([labeled(plan, each, OTHER_STYLE) for each in scored]) if scored else pd.DataFrame()
