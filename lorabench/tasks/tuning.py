"""task=tuning: every method at its published settings and at settings tuned with the same budget.

    python run.py experiments=tuning

The values of `task.ranges` are combined by Hydra's grid sweeper into `task.configurations` per method. All of them are
run on `task.pairs` development pairs, and the one with the greatest `both` is chosen; `both_similarity` decides between
equal ones. The published and the chosen configurations are then compared on the pairs of the dataset, none of whose
subjects and styles are development names. Learned merges are also run with shares of their steps, on the development
pairs. Everything comes from the store, so an interrupted run resumes, and pairs that another experiment has computed
are not computed again.

`task=tune` is another question: the weights of a user's own LoRA files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.data import microworld as mw
from lorabench.engine.make import make
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.method import Method, load
from lorabench.report.headline import with_headline
from lorabench.report.notes import design_notes
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_plan
from lorabench.tasks.plan import Plan
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
    """Write tuning.md, tuning.csv, configurations.csv, steps.csv and chosen.yaml, and print the text."""
    from lorabench.report import tuning as report

    tried = configurations(cfg.task)
    evaluation, development = plan_of(cfg, []), development_plan(cfg)
    check_apart(evaluation)
    reference = Row.of(REFERENCE)
    baselines = rows_with_baselines(reference, evaluation.dataset, evaluation.pairs)[:-1]
    single = [row for row in baselines if row.method is not None]
    development = replace(development, rows=[*single, *(row_of(each.label, each.of) for each in flat(tried))])
    check_plan(development)
    make(development.store, development.trainer, development.all_artifacts())

    found = report.development_scores(with_headline(scores_of(development)), flat(tried))
    best = {name: Configuration(name, words) for name, words in report.chosen_settings(found).items()}
    curves = {f"{name} {steps}": (name, steps, changed) for name, each in best.items()
              for steps, changed in by_steps(each.of, list(cfg.task.steps)).items()}  # fmt: skip
    development = replace(development, rows=[*single, *(row_of(label, each) for label, (*_, each) in curves.items())])
    tuned = [row_of(tuned_label(name), each.of) for name, each in best.items()]
    evaluation = replace(evaluation, rows=[*baselines, reference, *(Row.of(name) for name in tried), *tuned])
    make(evaluation.store, evaluation.trainer, [*development.all_artifacts(), *evaluation.all_artifacts()])

    steps = report.scores_by_steps(
        with_headline(scores_of(development)), {label: (name, count) for label, (name, count, _) in curves.items()}
    )
    scores = with_headline(scores_of(evaluation))
    lines = report.compared(scores, list(tried), REFERENCE)
    behind, _ = design_notes(scores)
    text = report.write_tuning(
        lines, {name: each.words for name, each in best.items()}, found, steps, list(cfg.task.shown),
        f"{len(evaluation.pairs)} pairs{behind}, {evaluation.generation.images} images each", len(development.pairs),
    )  # fmt: skip
    for name, table in (("tuning", lines), ("configurations", found), ("steps", steps)):
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    chosen = {name: settings_of(each.words) for name, each in best.items()}
    (folder / "chosen.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")
    (folder / "tuning.md").write_text(text, encoding="utf-8")
    print(text)
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


def by_steps(method: Method, shares: Sequence[float]) -> Mapping[int, Method]:
    """Return a learned merge by number of optimizer steps, with shares of its own and with all; empty for others."""
    if not isinstance(method.merge, LearnedMasks):
        return {}
    fit = method.merge.fit
    counts = sorted({max(round(share * fit.steps), 1) for share in (*shares, 1.0)})
    return {count: method.with_settings(fit=replace(fit, steps=count)) for count in counts}


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


def flat(tried: Mapping[str, Sequence[Configuration]]) -> list[Configuration]:
    """Return the configurations of all methods."""
    return [each for own in tried.values() for each in own]


def tuned_label(name: str) -> str:
    """Return the label of a method at its chosen settings."""
    return f"{name} tuned"


def row_of(label: str, method: Method) -> Row:
    """Return a row with a label of its own."""
    return replace(Row.chosen(method, "none"), name=label)
