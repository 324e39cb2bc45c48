"""task=tuning: every method at its published settings and at settings tuned with the same budget.

    python run.py experiments=tuning

The values of `task.ranges` are combined by Hydra's grid sweeper into `task.configurations` per method. All of them are
run on `task.pairs` development pairs, and the one with the greatest `both` is chosen; `both_similarity` decides between
equal ones. The published and the chosen configurations are then compared on the pairs of the dataset, none of whose
subjects and styles are development names. Learned merges are also run with shares of their steps, on the development
pairs. Everything comes from the store, so an interrupted run resumes, and pairs that another experiment has computed
are not computed again.

A configuration that fails, as with a learning rate that is too high, cannot be chosen. It is named in tuning.md with
its reason, all others are finished and compared, and the exit code is 1.

`task=tune` is another question: the weights of a user's own LoRA files.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.data import microworld as mw
from lorabench.engine.failures import Incomplete
from lorabench.engine.make import make
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.method import Method, load
from lorabench.report.headline import BOTH, with_headline
from lorabench.report.notes import design_notes
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_plan
from lorabench.tasks.plan import Plan
from lorabench.tasks.row_failures import FAILED, failures_of, without_failed
from lorabench.tasks.rows import Row, rows_with_baselines
from lorabench.tasks.settings_grid import grid, settings_of
from lorabench.tasks.stored_scores import scores_of

ALL = "all"
REFERENCE = "direct"


@dataclass(frozen=True)
class Configuration:
    """A method with values of some of its settings.

    Args:
        method: Name of the preset.
        words: Settings as on the command line, "fit.lr=0.01 lambda_prior=0.1".
    """

    method: str
    words: str

    @property
    def label(self) -> str:
        return f"{self.method} {self.words}"

    @property
    def of(self) -> Method:
        """Return the method with these settings.

        Raises:
            UserError: If it lacks a setting, or a value is not allowed.
        """
        return load(self.method, **settings_of(self.words))

    @property
    def is_published(self) -> bool:
        """Return whether the settings are those of the preset."""
        return self.of.settings == load(self.method).settings


def run(cfg: DictConfig, folder: Path) -> str:
    """Write tuning.md, tuning.csv, configurations.csv, steps.csv and chosen.yaml, and print the text.

    Raises:
        Incomplete: If a configuration failed.
    """
    from lorabench.report import tuning as report

    tried = configurations(cfg.task)
    evaluation, development = plan_of(cfg, []), development_plan(cfg)
    check_apart(evaluation)
    logs, reference = folder / FAILED, Row.of(REFERENCE)
    shutil.rmtree(logs, ignore_errors=True)
    baselines = rows_with_baselines(reference, evaluation.dataset, evaluation.pairs)[:-1]
    single = [row for row in baselines if row.method is not None]
    development = replace(development, rows=[*single, *(row_of(each.label, each.of) for each in flat(tried))])
    check_plan(development)
    check_recognition(development)
    make(development.store, development.trainer, development.all_artifacts(), logs=logs)

    failed = failures_of(development, logs)
    scores = with_headline(scores_of(without_failed(development, failed)))
    found = report.development_scores(scores, [each for each in flat(tried) if each.label not in failed])
    best = {name: Configuration(name, words) for name, words in report.chosen_settings(found).items()}
    images = [concept.weight for concept in development.pairs[0].concepts]
    curves = {f"{name} {steps}": (name, steps, changed) for name, each in best.items()
              for steps, changed in by_steps(each.of, list(cfg.task.steps), images).items()}  # fmt: skip
    development = replace(development, rows=[*single, *(row_of(label, each) for label, (*_, each) in curves.items())])
    tuned = [row_of(tuned_label(name), each.of) for name, each in best.items() if not each.is_published]
    evaluation = replace(evaluation, rows=[*baselines, reference, *(Row.of(name) for name in best), *tuned])
    artifacts = [*development.all_artifacts(), *evaluation.all_artifacts()]
    make(evaluation.store, evaluation.trainer, artifacts, logs=logs)

    failed |= failures_of(development, logs) | failures_of(evaluation, logs)
    if REFERENCE in failed:
        raise Incomplete(f"{REFERENCE}, the reference of all methods, failed: {failed[REFERENCE]}")
    steps = report.scores_by_steps(
        with_headline(scores_of(without_failed(development, failed))),
        {label: (name, count) for label, (name, count, _) in curves.items() if label not in failed},
    )
    scores = with_headline(scores_of(without_failed(evaluation, failed)))
    names = [name for name in best if not {name, tuned_label(name)} & failed.keys()]
    lines = report.compared(scores, names, REFERENCE)
    behind, _ = design_notes(scores)
    text = report.write_tuning(
        lines, {name: each.words for name, each in best.items()}, found, steps, list(cfg.task.shown),
        f"{len(evaluation.pairs)} pairs{behind}, {evaluation.generation.images} images each", len(development.pairs),
        failed,
    )  # fmt: skip
    for name, table in (("tuning", lines), ("configurations", found), ("steps", steps)):
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    chosen = {name: settings_of(each.words) for name, each in best.items()}
    (folder / "chosen.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")
    (folder / "tuning.md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        raise Incomplete(f"{len(failed)} configurations failed; see tuning.md in the output folder")
    return "tuning.md"


def configurations(task: DictConfig) -> dict[str, list[Configuration]]:
    """Return the configurations of each method, the published one first if it is among them.

    Raises:
        UserError: If a method has no ranges, more configurations than the budget, or no such settings.
    """
    names = list(task.ranges) if task.methods == ALL else list(task.methods)
    tried = {}
    for name in names:
        choose("task.methods", name, list(task.ranges))
        own = [
            Configuration(name, words) for words in grid(f"task.ranges.{name}", task.ranges[name], "density=0.2,0.5")
        ]
        if len(own) > task.configurations:
            raise UserError(
                f"task.ranges.{name} has {len(own)} configurations, and the budget of each method is "
                f"task.configurations={task.configurations}; use fewer values"
            )
        tried[name] = sorted(own, key=lambda each: not each.is_published)
    return tried


def by_steps(method: Method, shares: Sequence[float], images: Sequence[int]) -> Mapping[int, Method]:
    """Return a learned merge by number of optimizer steps, with shares of its own and with all; empty for others.

    Args:
        method: The method.
        shares: Shares of its steps.
        images: Number of training images of each concept; duolora_released makes one step per epoch of them.
    """
    merge = method.merge
    if not isinstance(merge, LearnedMasks):
        return {}
    found = {}
    for count in sorted({max(round(share * merge.fit.steps), 1) for share in (*shares, 1.0)}):
        changed = replace(merge, fit=replace(merge.fit, steps=count))
        found[changed.steps(images)] = replace(method, merge=changed)
    return found


def development_plan(cfg: DictConfig) -> Plan:
    """Return the plan of the development pairs, without rows.

    Raises:
        UserError: If the dataset has no development names.
    """
    if cfg.dataset.name != "microworld":
        raise UserError(f"dataset={cfg.dataset.name} has no development names; use dataset=microworld")
    names = {"subjects": "development", "styles": "development", "contents": None, "pairs": "matched"}
    changed = OmegaConf.merge(cfg.dataset, {**names, "count": cfg.task.pairs})
    return plan_of(OmegaConf.merge(cfg, {"dataset": changed}), [])  # type: ignore[arg-type]


def check_apart(evaluation: Plan) -> None:
    """Check that no subject and no style that is evaluated on is a development name.

    Raises:
        UserError: If one is.
    """
    names = {concept.name for pair in evaluation.pairs for concept in pair.concepts}
    if shared := sorted(names & {*mw.DEVELOPMENT_SUBJECTS, *mw.DEVELOPMENT_STYLES}):
        raise UserError(f"{shared[0]} is a development name, on which settings are chosen; use dataset.subjects=all")


def check_recognition(plan: Plan) -> None:
    """Check that `both`, by which configurations are chosen, can be scored.

    Raises:
        UserError: If the scorers recognize no subjects and styles.
    """
    if plan.scorers.truth is None:
        raise UserError(f"these scorers do not recognize subjects and styles, so there is no {BOTH}; use scorers=micro")


def flat(tried: Mapping[str, Sequence[Configuration]]) -> list[Configuration]:
    """Return the configurations of all methods."""
    return [each for own in tried.values() for each in own]


def tuned_label(name: str) -> str:
    """Return the label of a method at its chosen settings."""
    return f"{name} tuned"


def row_of(label: str, method: Method) -> Row:
    """Return a row with a label of its own."""
    return replace(Row.chosen(method, "none"), name=label)
