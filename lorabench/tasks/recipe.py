"""task=recipe: what do LoRAs that were trained with different settings draw by themselves?

    python run.py experiments=recipe          # search on development names
    python run.py experiments=single_loras    # lora= as configured, on all held-out names

A content LoRA draws photographs of its subject on the grounds of the microworld, and a style LoRA drawings of an object
in its style. No LoRAs are merged, so that the recipe is chosen for no method. `task.ranges` are settings of lora=.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.checks import validate
from lorabench.data.concepts import ROLES, Role
from lorabench.data.pairs import Pair
from lorabench.data.uses import pair_for
from lorabench.engine.make import make
from lorabench.report.labels import BASELINES
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_plan
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row
from lorabench.tasks.run_manifest import cost_of
from lorabench.tasks.settings_grid import grid, settings_of
from lorabench.tasks.stored_scores import labeled

CONFIGURED = "lora= as configured"
SINGLE: dict[Role, str] = dict(zip(ROLES, BASELINES[1:], strict=True))  # rows with one LoRA
NOUNS = ("subjects", "styles")


def run(cfg: DictConfig, folder: Path) -> str:
    """Write recipe.csv, recipe.md and chosen.yaml, and print the text."""
    from lorabench.report import recipe as report

    plans = {label: plans_of(each) for label, each in recipes(cfg).items()}
    for own in plans.values():
        for plan in own.values():
            check_plan(plan)
    some = next(iter(plans.values()))
    make(
        some["content"].store, some["content"].trainer,
        [artifact for own in plans.values() for plan in own.values() for artifact in plan.all_artifacts()],
    )  # fmt: skip

    scores = pd.concat(scores_of(plan, role, label) for label, own in plans.items() for role, plan in own.items())
    lines = report.recipe_lines(report.with_asked(scores), list(cfg.task.shown))
    names = " and ".join(f"{len(some[role].pairs)} {noun}" for role, noun in zip(ROLES, NOUNS, strict=True))
    text = report.write_recipes(lines, {label: costs(own) for label, own in plans.items()}, names)
    lines.to_csv(folder / "recipe.csv", index=False, float_format="%.6g")
    chosen = report.best(lines)
    settings = {} if chosen == CONFIGURED else settings_of(chosen)
    (folder / "chosen.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (folder / "recipe.md").write_text(text, encoding="utf-8")
    print(text)
    return "recipe.md"


def recipes(cfg: DictConfig) -> dict[str, DictConfig]:
    """Return the configuration of each recipe by its settings, the configured one first.

    Raises:
        UserError: If a setting is not one of lora=, or a value is not allowed.
    """
    found = {CONFIGURED: cfg}
    for index, ranges in enumerate(cfg.task.ranges):
        for words in grid(f"task.ranges[{index}]", ranges, "lr=0.0005,0.001"):
            settings = settings_of(words)
            if unknown := next((name for name in settings if name not in cfg.lora), None):
                raise UserError(f"task.ranges[{index}]: lora.{unknown} is unknown; use one of {', '.join(cfg.lora)}")
            changed = OmegaConf.merge(cfg, {"lora": settings})
            assert isinstance(changed, DictConfig)
            validate(changed)
            found[words] = changed
    return found


def plans_of(cfg: DictConfig) -> dict[Role, Plan]:
    """Return the plan of each role: its LoRAs by themselves, with the same number of images per name.

    Raises:
        UserError: If the subjects and styles have no known truth.
    """
    plan = plan_of(cfg, [])
    known = all(pair.is_single and all(each.factors for each in pair.concepts) for pair in plan.pairs)
    if plan.scorers.truth is None or not known:
        raise UserError(
            "task=recipe recognizes one subject or style per image; use dataset=microworld scorers=micro, without "
            "dataset.contents and +"
        )
    pairs = {role: each_once(plan.pairs, role) for role in ROLES}
    scenes = {role: len(pair_for(pairs[role][0], role).drawn) for role in ROLES}
    every = math.lcm(*scenes.values())
    return {
        role: replace(
            plan, rows=[Row.of(SINGLE[role])], pairs=pairs[role], uses=(role,),
            generation=replace(plan.generation, images=plan.generation.images * every // scenes[role]),
        )
        for role in ROLES
    }  # fmt: skip


def each_once(pairs: list[Pair], role: Role) -> list[Pair]:
    """Return one pair for each subject, or for each style, with others that are spread evenly over all there are.

    Prompts of styles then have objects of all classes.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.names[role], []).append(pair)
    return [own[k * len(own) // len(groups)] for k, own in enumerate(groups.values())]


def scores_of(plan: Plan, role: Role, label: str) -> pd.DataFrame:
    """Return the stored scores of a role's images with the columns `label` and `use`."""
    scored = (plan.score(row, pair, role) for row, pair in plan.cells())
    return pd.concat(labeled(plan, each, label) for each in scored).assign(use=role)


def costs(plans: Mapping[Role, Plan]) -> dict[str, float]:
    """Return the `images` that a training of a recipe draws, and its mean `seconds`."""
    lora = plans["content"].lora
    drawn = lora.steps * lora.batch * lora.accumulate * (2 if lora.prior_weight else 1)
    seconds = [cost_of(plan, each)["seconds"] for plan in plans.values() for each in plan.trainings()]
    return {"images": drawn, "seconds": sum(seconds) / len(seconds)}
