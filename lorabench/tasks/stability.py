"""task=stability: does the order of methods hold on other pairs, for other images and with other LoRAs?

    python run.py experiments=stability

All rows of `task.rows` are compared on all pairs with the seed of the run, as in experiments=all_methods, whose LoRAs,
images and scores are reused. The rows of `task.repeated` are run again on the first `task.pairs` pairs with each of
`task.seeds`, which gives other LoRAs and other noise. lorabench/report/stability.py has the statistics: the order of
the methods on halves of the pairs, on halves of the images and between seeds, its agreement with that of the ground
truth, and the sources of variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from lorabench.base import UserError
from lorabench.engine.make import make
from lorabench.report import protocols, stability
from lorabench.report.headline import with_headline
from lorabench.report.notes import design_notes
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_plan
from lorabench.tasks.compare import rows_of
from lorabench.tasks.rows import check_uniform, name_of, rows_with_baselines
from lorabench.tasks.stored_scores import scores_of


def run(cfg: DictConfig, folder: Path) -> str:
    """Write stability.md, stability.csv (orders) and variance.csv, and print the text."""
    rows = {name_of(row): replace(row, name=name_of(row)) for row in rows_of(list(cfg.task.rows))}
    repeated, seeds = list(cfg.task.repeated), list(cfg.task.seeds)
    plan = plan_of(cfg, [])
    check(list(rows), repeated, [plan.seed, *seeds], cfg.reference)
    check_uniform(list(rows.values()), plan.pairs)
    baselines = rows_with_baselines(next(iter(rows.values())), plan.dataset, plan.pairs)[:-1]
    first = replace(plan, rows=[*baselines, *rows.values()])
    again = replace(plan, rows=[rows[name] for name in repeated], pairs=plan.pairs[: cfg.task.pairs])
    plans = [first, *(replace(again, seed=seed) for seed in seeds)]
    check_plan(first)
    make(plan.store, plan.trainer, [artifact for each in plans for artifact in each.all_artifacts()])

    scores = with_headline(pd.concat([scores_of(each) for each in plans]))
    trained = {seed: each.seed for each in plans for pair in each.pairs for seed in each.seeds(pair)}
    by_label = {label: scores[scores["label"] == label] for label in rows}
    images = [
        (column, {label: stability.images_of(own, column, trained) for label, own in by_label.items()})
        for column in protocols.columns(protocols.ALL, scores)[0]
    ]
    orders, shares = stability.measured(images, cfg.reference, trainings=1)
    behind, _ = design_notes(scores)
    text = stability.write_stability(orders, shares) + (
        f"\n{len(plan.pairs)} pairs{behind}, {plan.generation.images} images each. {', '.join(repeated)} were run "
        f"with {len(plans)} seeds on {len(again.pairs)} pairs. Twice as many: as many as a table of one seed has.\n"
    )
    for name, found in (("stability", orders), ("variance", shares)):
        found.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    (folder / "stability.md").write_text(text, encoding="utf-8")
    print(text)
    return "stability.md"


def check(rows: Sequence[str], repeated: Sequence[str], seeds: Sequence[int], reference: str) -> None:
    """Check the settings of the task.

    Args:
        rows: Names of all rows.
        repeated: Names of those with several seeds.
        seeds: The seed of the run, and those of the repeats.
        reference: Row that differences refer to.

    Raises:
        UserError: If repeated rows are too few or unknown, or seeds are not different.
    """
    if unknown := next((name for name in repeated if name not in rows), None):
        raise UserError(f"task.repeated names {unknown}, which is not in task.rows; add it there")
    if len(set(repeated)) < stability.LEAST or reference not in repeated:
        raise UserError(
            f"task.repeated must be {stability.LEAST} or more rows with reference={reference}; "
            f"use task.repeated=[{reference},ties,klora]"
        )
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise UserError(
            f"task.seeds={list(seeds[1:])} must be one or more seeds other than seed={seeds[0]}; "
            f"use task.seeds=[{seeds[0] + 1}]"
        )
