"""Several methods and ablations in one run: one plan, one folder, one table.

    python run.py task=compare task.rows=[direct,duolora,"duolora no_cycle"]
    python run.py experiments=smoke                        # every method with every ablation, as small as can be

A sweep makes a run folder of each and compares them afterwards; here all rows share the frame rows and the workers,
which is worth it where rows are many and small. A row that fails costs the others nothing: they are reported as always,
what failed is listed at the end with its log, and the exit code is 1. Nothing of a failure is stored, so the same
command tries it again. Ranks (trainer=ddp) work on all rows together; there the first failure ends the run.
"""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.engine.devices import device_name
from lorabench.engine.failures import Incomplete
from lorabench.engine.make import make
from lorabench.merging import presets
from lorabench.merging.learned import LearnedMasks
from lorabench.report.labels import label
from lorabench.report.loggers.views import logger_of, open_view
from lorabench.tasks.benchmark import (
    REPORT_COST,
    at_one_node,
    plan_of,
    put_together,
    show,
    tell,
)
from lorabench.tasks.checks import check_methods, check_scorers
from lorabench.tasks.composition import has_images
from lorabench.tasks.plan import STAGES, Plan
from lorabench.tasks.rows import FLOORS, Row, check_rows, check_uniform, frame_rows
from lorabench.tasks.run_folder import Outcome

ALL = "all"
FAILED = "failed"  # folder of the logs, in the run folder


def run(cfg: DictConfig, folder: Path) -> None:
    """The rows of the config into one run folder; prints the table.  Raises Incomplete where a row failed."""
    rows = rows_of(cfg.task.rows, cfg.task.fit_steps)
    plan = plan_of(cfg, [])
    if cfg.task.rows == ALL:
        rows = [row for row in rows if has_images(row.own, plan.dataset)]
    check_uniform(rows, plan.pairs)
    frames = frame_rows(rows[0], plan.dataset, plan.pairs)[:-1]
    plan, logs = replace(plan, rows=[*frames, *rows]), folder / FAILED
    logger = logger_of(cfg)
    outcome = Outcome(folder, plan, config_of(cfg))
    if outcome.is_done(logger):
        return tell(outcome)
    device_name(plan.trainer.accelerator)  # is it there?
    check_scorers(plan)
    for each in plan.all_artifacts():  # artifacts of an earlier attempt
        (logs / f"{each.key}.txt").unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or it holds logs of other rows
        logs.rmdir()
    failures = misfits(plan)
    plan = replace(plan, rows=[row for row in plan.rows if name_of(row) not in failures])
    start, artifacts = time.perf_counter(), plan.all_artifacts()
    plan = at_one_node(plan, artifacts)
    outcome.output.claim()
    with ExitStack() as held:
        with open_view(logger, folder, plan.key(), yaml.safe_load(outcome.config)) as view:
            names = {plan.merge(row, pair).key: name_of(row) for row, pair in plan.cells() if row.is_method}
            shown = partial(show, outcome, view, names)
            make(plan.store, plan.trainer, artifacts, shown, REPORT_COST, logs)
            held.enter_context(outcome.alone())
            if outcome.is_done(logger):  # as in pipeline.run
                return tell(outcome)
            failures |= {name_of(row): why for row in plan.rows if (why := first_failure(plan, row, logs))}
            whole = [row for row in plan.rows if name_of(row) not in failures]
            if {name_of(row) for row in rows} - failures.keys():
                outcome = Outcome(folder, replace(plan, rows=whole), outcome.config)
                put_together(outcome, view, start)
            if failures:
                lines = "".join(f"\n  {name}: {why}" for name, why in failures.items())
                raise Incomplete(f"{len(failures)} of {len(rows) + len(frames)} rows failed{lines}")
        outcome.seal(logger)


def config_of(cfg: DictConfig) -> str:
    """The resolved config without its `method`, which the rows stand for; their settings are in the manifest."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    return OmegaConf.to_yaml(OmegaConf.create({key: value for key, value in resolved.items() if key != "method"}))


def rows_of(named: Any, fit_steps: int | None = None) -> list[Row]:
    """Return the rows of "method" and "method ablation"; of "all" every preset with every ablation that fits it.

    Args:
        fit_steps: Optimizer steps of every learned merge; None keeps those of the method.

    Raises:
        UserError: If a row does not exist.
    """
    if named == ALL:
        named = [
            f"{name} {each}"
            for each in presets.ablations()
            for name in presets.fitting_presets(each)
            if name not in FLOORS
        ]
    named = [named] if isinstance(named, str) else list(named or [])
    rows = [row_of(str(words), fit_steps) for words in named]
    names = [name_of(row) for row in rows]
    check_rows("task.rows", names, "[direct,duolora] or task.rows=all", floors="frames every table")
    return rows


def row_of(words: str, fit_steps: int | None) -> Row:
    name, _, ablation = " ".join(words.split()).partition(" ")
    row = Row.of(name, ablation or "none")
    if fit_steps is None or not isinstance(row.own.merge, LearnedMasks):
        return row
    return replace(row, method=row.own.with_settings(fit=replace(row.own.merge.fit, steps=fit_steps)))


def name_of(row: Row) -> str:
    return label(row.name, row.ablation)


def misfits(plan: Plan) -> dict[str, str]:
    """By name, the rows whose masks do not fit the model, with the reason; found before anything is trained."""
    try:
        check_methods(plan)
        return {}
    except Exception:
        return {name_of(row): why for row in plan.rows if (why := misfit(plan, row))}


def misfit(plan: Plan, row: Row) -> str | None:
    try:
        check_methods(replace(plan, rows=[row]))
    except Exception as error:
        return reason(str(error) if isinstance(error, UserError) else traceback.format_exc())
    return None


def first_failure(plan: Plan, row: Row, logs: Path) -> str | None:
    """Return the first artifact of a row that failed, with the reason; None if none did."""
    own = replace(plan, rows=[row])
    for stage in STAGES:
        for each in own.artifacts(stage):
            log = logs / f"{each.key}.txt"
            if log.is_file():
                return f"{stage} of {each.name}: {reason(log.read_text())} ({log})"
    return None


def reason(log: str) -> str:
    """The last line of a traceback that says something."""
    return next((line for line in reversed(log.splitlines()) if line.strip()), "no reason given")
