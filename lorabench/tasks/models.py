"""task=models: the same rows on several models, in one table, with the agreement of their orders.

    python run.py experiments=sdxl_against_dit

The models are the configured one (`model=`) and the presets of `task.others`. They get the same pairs, recipe, noise
and scorers, and one store. The noise of an image depends on its seed and the shape of latents only, so models with
latents of the same shape start from the same noise.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lorabench.base import CONF, UserError
from lorabench.config.choices import choose
from lorabench.engine.devices import device_name
from lorabench.engine.make import make
from lorabench.models.files import preset
from lorabench.report import carry_over, protocols
from lorabench.report.headline import with_headline
from lorabench.report.labels import BASELINES_AND_ORACLE
from lorabench.report.notes import design_notes
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_methods, check_scorers
from lorabench.tasks.compare import rows_of
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import check_uniform, name_of, rows_with_baselines
from lorabench.tasks.stored_scores import by_label, scores_of


def run(cfg: DictConfig, folder: Path) -> str:
    """Write models.csv, orders.csv and models.md, and print the text."""
    rows = rows_of(cfg.task.rows, cfg.task.fit_steps)
    names = [name_of(row) for row in rows]
    if cfg.reference not in names:
        raise UserError(f"task.rows must have reference={cfg.reference}; use task.rows=[{cfg.reference},duolora]")
    plans = plans_of(cfg)
    for name, plan in plans.items():
        check_uniform(rows, plan.pairs)
        labeled = [replace(row, name=label) for row, label in zip(rows, names, strict=True)]
        plans[name] = replace(plan, rows=[*rows_with_baselines(rows[0], plan.dataset, plan.pairs)[:-1], *labeled])
        check_methods(plans[name])
    first = next(iter(plans.values()))
    device_name(first.trainer.accelerator)  # fails if the device is missing
    check_scorers(first)
    make(first.store, first.trainer, [artifact for plan in plans.values() for artifact in plan.all_artifacts()])

    scores = {name: with_headline(scores_of(plan)) for name, plan in plans.items()}
    lines, orders = compared(scores, cfg.reference)
    behind, _ = design_notes(scores[first.model_name])
    text = carry_over.write(lines, orders, cfg.reference, f"{len(first.pairs)} pairs{behind}", first.generation.images)
    lines.to_csv(folder / "models.csv", index=False, float_format="%.6g")
    orders.to_csv(folder / "orders.csv", index=False, float_format="%.6g")
    (folder / "models.md").write_text(text, encoding="utf-8")
    print(text)
    return "models.md"


def plans_of(cfg: DictConfig) -> dict[str, Plan]:
    """Return the plan of each model by name, without rows.

    Raises:
        UserError: If a model does not exist, has no weights or is named twice.
    """
    presets = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    plans = {cfg.model.name: plan_of(cfg, [])}
    for name in cfg.task.others:
        choose("task.others", name, presets)
        if name in plans:
            raise UserError(f"task.others={name} is compared already; use task.others=[<another model>]")
        other = deepcopy(cfg)
        other.model = OmegaConf.structured(preset(name))
        plans[name] = plan_of(other, [])
    if len(plans) < 2:
        raise UserError("task.others must name a model; use task.others=[micro_sd3]")
    return plans


def compared(scores: dict[str, pd.DataFrame], reference: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the lines and the orders of all scores that all models have.

    Args:
        scores: Scores by model.
        reference: Row that differences refer to.
    """
    found = {name: protocols.columns(protocols.ALL, own)[0] for name, own in scores.items()}
    shared = set.intersection(*({column.name for column in columns} for columns in found.values()))
    lines, orders = [], []
    for column in next(iter(found.values())):
        if column.name not in shared:
            continue
        values = {
            name: by_label(own, next(each for each in found[name] if each.name == column.name))
            for name, own in scores.items()
        }
        methods = {
            name: table.drop(index=list(BASELINES_AND_ORACLE), errors="ignore") for name, table in values.items()
        }
        if any(reference not in table.index for table in methods.values()):
            continue
        lines.append(carry_over.differences(column.name, values, reference))
        orders.append(carry_over.agreement(column.name, methods))
    return pd.concat(lines, ignore_index=True), pd.concat(orders, ignore_index=True)
