"""task=grid: every training with one merge of each kind and every sampling rule, on one pair with few steps.

    python run.py experiments=grid

Prints a matrix of the combinations: which ones run, and why the others are refused. Images are generated, not scored.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from lorabench.base import UserError
from lorabench.config.components import components
from lorabench.engine.devices import device_name
from lorabench.engine.failures import Incomplete
from lorabench.engine.make import make
from lorabench.merging import presets
from lorabench.merging.method_names import CHANGED
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_methods
from lorabench.tasks.compare import row_of
from lorabench.tasks.plan import Plan
from lorabench.tasks.row_failures import FAILED, first_failure
from lorabench.tasks.rows import Row

BASE = "direct"  # preset whose components are replaced
Cell = tuple[str, str, str]  # options of training, merge and sampling


def run(cfg: DictConfig, folder: Path) -> str:
    """Write and print grid.md, and return its name.

    Raises:
        Incomplete: If a combination was not refused and failed.
    """
    trainings, rules = (sorted(components(*presets.PACKAGES[group])) for group in ("training", "sampling"))
    merges = list(cfg.task.merges)
    plan = plan_of(cfg, [])
    rows: dict[Cell, Row] = {}
    refused: dict[Cell, str] = {}
    for cell in [(training, merge, rule) for training in trainings for merge in merges for rule in rules]:
        try:
            rows[cell] = checked(plan, cell, cfg.task.fit_steps)
        except UserError as error:
            refused[cell] = str(error)
    device_name(plan.trainer.accelerator)  # raises UserError if there is no such device
    plan, logs = replace(plan, rows=list(rows.values())), folder / FAILED
    shutil.rmtree(logs, ignore_errors=True)
    make(plan.store, plan.trainer, plan.artifacts("generate"), logs=logs)
    failed = {cell: why for cell, row in rows.items() if (why := first_failure(plan, row, logs))}
    text = matrix(trainings, merges, rules, refused, failed)
    (folder / "grid.md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        raise Incomplete(f"{len(failed)} of {len(rows)} combinations failed; see grid.md in the output folder")
    return "grid.md"


def checked(plan: Plan, cell: Cell, fit_steps: int) -> Row:
    """Return the row of a combination of components.

    Raises:
        UserError: If the combination is refused.
    """
    name = CHANGED.join([BASE, *(f"{group}.{option}" for group, option in zip(presets.GROUPS, cell, strict=True))])
    row = row_of(name, fit_steps)
    check_methods(replace(plan, rows=[row]))
    return row


def matrix(
    trainings: Sequence[str],
    merges: Sequence[str],
    rules: Sequence[str],
    refused: Mapping[Cell, str],
    failed: Mapping[Cell, str],
) -> str:
    """Return Markdown: one row per training and merge, one column per sampling rule, and the reasons as notes.

    Args:
        trainings, merges, rules: Names of the options.
        refused: Reason by combination that raises an error.
        failed: Error by combination that failed.
    """
    reasons = list(dict.fromkeys([*refused.values(), *failed.values()]))

    def result(cell: Cell) -> str:
        if cell in failed:
            return f"FAILED ({reasons.index(failed[cell]) + 1})"
        return f"refused ({reasons.index(refused[cell]) + 1})" if cell in refused else "runs"

    lines = [f"| training | merge | {' | '.join(rules)} |", f"|---|---|{'---|' * len(rules)}"]
    for training in trainings:
        for merge in merges:
            cells = [result((training, merge, rule)) for rule in rules]
            lines.append(f"| {training} | {merge} | {' | '.join(cells)} |")
    count = len(trainings) * len(merges) * len(rules)
    runs = count - len(refused) - len(failed)
    notes = [f"{runs} of {count} combinations run, {len(refused)} are refused, {len(failed)} failed."]
    notes += [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"
