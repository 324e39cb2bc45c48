"""task=compare: several methods and ablations in one run, with one plan, one folder and one table.

    python run.py task=compare task.rows=[direct,duolora,"duolora no_cycle"]
    python run.py experiments=smoke                        # every method with every ablation, with minimal sizes

A sweep makes one run folder per method and compares them afterwards. Here all rows share the baselines and the workers,
which is faster for many small rows. If a row fails, the others are finished and reported; the failures are listed at
the end with their logs, and the exit code is 1. A failure is not stored, so the same command tries it again. With ranks
(trainer=ddp), which compute all rows together, the first failure ends the run.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
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
from lorabench.report.loggers.views import logger_of, open_view
from lorabench.tasks.benchmark import (
    REPORT_COST,
    at_one_node,
    plan_of,
    print_result,
    put_together,
    show,
)
from lorabench.tasks.checks import check_methods, check_scorers
from lorabench.tasks.plan import Plan
from lorabench.tasks.row_failures import FAILED, failures_of, reason, without_failed
from lorabench.tasks.rows import BASELINES, Row, check_rows, check_uniform, name_of, rows_with_baselines
from lorabench.tasks.run_folder import RunWriter

ALL = "all"


def run(cfg: DictConfig, folder: Path) -> None:
    """Run the configured rows into one run folder and print the table.

    Raises:
        Incomplete: If a row failed.
    """
    rows = rows_of(cfg.task.rows, cfg.task.fit_steps)
    plan = plan_of(cfg, [])
    if cfg.task.rows == ALL:
        rows = trainable_rows(plan, rows)
    check_uniform(rows, plan.pairs)
    baselines = rows_with_baselines(rows[0], plan.dataset, plan.pairs)[:-1]
    plan, logs = replace(plan, rows=[*baselines, *rows]), folder / FAILED
    logger = logger_of(cfg)
    writer = RunWriter(folder, plan, config_of(cfg))
    if writer.is_done(logger):
        return print_result(writer)
    device_name(plan.trainer.accelerator)  # raises UserError if there is no such device
    check_scorers(plan)
    for each in plan.all_artifacts():  # logs of an earlier attempt
        (logs / f"{each.key}.txt").unlink(missing_ok=True)
    with suppress(OSError):  # the folder is missing or has logs of other rows
        logs.rmdir()
    failures = misfits(plan)
    plan = without_failed(plan, failures)
    start, artifacts = time.perf_counter(), plan.all_artifacts()
    plan = at_one_node(plan, artifacts)
    writer.output.claim()
    with ExitStack() as held:
        with open_view(logger, folder, plan.key(), yaml.safe_load(writer.config)) as view:
            names = {plan.merge(row, pair).key: name_of(row) for row, pair in plan.cells() if row.is_method}
            shown = partial(show, writer, view, names)
            make(plan.store, plan.trainer, artifacts, shown, REPORT_COST, logs)
            held.enter_context(writer.locked())
            if writer.is_done(logger):  # another process with the same command was quicker
                return print_result(writer)
            failures |= failures_of(plan, logs)
            if {name_of(row) for row in rows} - failures.keys():
                writer = RunWriter(folder, without_failed(plan, failures), writer.config)
                put_together(writer, view, start)
            if failures:
                lines = "".join(f"\n  {name}: {why}" for name, why in failures.items())
                count = len(rows) + len(baselines)
                raise Incomplete(f"{len(failures)} of {count} rows failed{lines}\nlogs are in {folder}")
        writer.seal(logger)


def config_of(cfg: DictConfig) -> str:
    """Return the resolved configuration as YAML without `method`; the manifest has the settings of each row."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    return OmegaConf.to_yaml(OmegaConf.create({key: value for key, value in resolved.items() if key != "method"}))


def rows_of(named: Any, fit_steps: int | None = None) -> list[Row]:
    """Return the rows for names "<method>" or "<method> <ablation>"; for "all", every preset and fitting ablation.

    Args:
        named: One name, a list of names, or "all".
        fit_steps: Optimizer steps of every learned merge; None keeps those of the method.

    Raises:
        UserError: If a row does not exist.
    """
    if named == ALL:
        named = [
            f"{name} {each}"
            for each in presets.ablations()
            for name in presets.fitting_presets(each)
            if name not in BASELINES
        ]
    named = [named] if isinstance(named, str) else list(named or [])
    rows = [row_of(str(words), fit_steps) for words in named]
    names = [name_of(row) for row in rows]
    check_rows("task.rows", names, "[direct,duolora] or task.rows=all", baselines="is in every table")
    return rows


def row_of(words: str, fit_steps: int | None) -> Row:
    """Return the row for "<method> <ablation>". See `rows_of` for `fit_steps`."""
    name, _, ablation = " ".join(words.split()).partition(" ")
    row = Row.of(name, ablation or "none")
    if fit_steps is None:
        return row
    method = replace(row.own, training=row.own.training.shortened(fit_steps))
    if isinstance(method.merge, LearnedMasks):
        method = method.with_settings(fit=replace(method.merge.fit, steps=fit_steps))
    return replace(row, method=method)


def trainable_rows(plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose training can use the images of all pairs; print which are left out."""
    refused: dict[str, str] = {}
    for row in rows:
        try:
            for pair in plan.pairs:
                plan.trained.outputs(row, pair)
        except UserError as error:
            refused[name_of(row)] = str(error)
    if refused:
        names = "; ".join(f"{name}: {why}" for name, why in refused.items())
        print(f"{len(refused)} rows are left out: {names}", file=sys.stderr)
    return [row for row in rows if name_of(row) not in refused]


def misfits(plan: Plan) -> dict[str, str]:
    """Return the reasons of rows whose masks do not fit the model, by name, before anything is trained."""
    try:
        check_methods(plan)
        return {}
    except Exception:
        return {name_of(row): why for row in plan.rows if (why := misfit(plan, row))}


def misfit(plan: Plan, row: Row) -> str | None:
    """Return why a row does not fit the model; None if it fits."""
    try:
        check_methods(replace(plan, rows=[row]))
    except Exception as error:
        return reason(str(error) if isinstance(error, UserError) else traceback.format_exc())
    return None
