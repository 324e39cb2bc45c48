"""The one loop: pairs -> personalise -> merge -> generate -> score -> report.

Every artifact comes from the store or is made into it by a worker; the run folder is then put together from them.
Stopped at any moment, the same command goes on from what is stored.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lorabench.config.choices import choose
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import Prompts
from lorabench.data.uses import JOINT, USES, Use
from lorabench.engine.artifact import Artifact
from lorabench.engine.devices import device_name
from lorabench.engine.make import make
from lorabench.engine.store import Store
from lorabench.models.files import model_files
from lorabench.report.loggers.view import View
from lorabench.report.loggers.views import logger_of, open_view
from lorabench.scoring.files import scorer_set
from lorabench.tasks.checks import check_methods, check_scorers
from lorabench.tasks.composition import ablation_of, method_of
from lorabench.tasks.plan import Plan
from lorabench.tasks.prompts import fitting, readers_of, scorer_readers
from lorabench.tasks.rows import Row, check_uniform, frame_rows
from lorabench.tasks.run_folder import Outcome

REPORT_COST = 300.0  # as Artifact.cost


def plan_of(cfg: DictConfig, rows: list[Row] | None = None) -> Plan:
    """The plan of a composed config, of the given rows or of the configured method between the frame rows.

    Raises UserError for every mistake that can be seen beforehand.
    """
    store = Store.open(Path(cfg.store))
    groups = ("model", "scorers", "dataset", "lora", "generate", "merge", "trainer")
    typed: Any = {name: OmegaConf.to_object(cfg[name]) for name in groups}
    model, scorers = model_files(typed["model"]), scorer_set(typed["scorers"])
    prompts = Prompts(**cfg.prompts)
    pairs = load_pairs(typed["dataset"], prompts)
    pairs = fitting(pairs, prompts, readers_of(model, cfg.model.name), scorer_readers(scorers))
    if rows is None:
        chosen = Row.chosen(method_of(cfg), ablation_of())
        check_uniform([chosen], pairs)
        rows = frame_rows(chosen, typed["dataset"], pairs)
    return Plan(
        store=store,
        pairs=pairs,
        rows=rows,
        dataset=typed["dataset"],
        model=model,
        model_name=cfg.model.name,
        scorers=scorers,
        weights=store.digest(*model.sources()),
        scorers_digest=store.digest(*scorers.sources()),
        lora=typed["lora"],
        generation=typed["generate"],
        merging=typed["merge"],
        trainer=typed["trainer"],
        seed=cfg.seed,
        scoring_batch=typed["scorers"].batch,
        uses=uses_of(cfg),
    )


def uses_of(cfg: DictConfig) -> tuple[Use, ...]:
    """Return the configured uses, joint always among them.

    Raises:
        UserError: If there is no such use.
    """
    for use in cfg.uses:
        choose("uses", use, USES)
    return tuple(use for use in USES if use == JOINT or use in cfg.uses)


def run(cfg: DictConfig, folder: Path) -> None:
    """The whole benchmark of the configured method into its run folder; prints the table."""
    plan = plan_of(cfg)
    logger = logger_of(cfg)
    outcome = Outcome(folder, plan, OmegaConf.to_yaml(cfg, resolve=True))
    if outcome.is_done(logger):
        return tell(outcome)
    device_name(plan.trainer.accelerator)  # is it there?
    check_methods(plan)
    check_scorers(plan)
    start, artifacts = time.perf_counter(), plan.all_artifacts()
    plan = at_one_node(plan, artifacts)
    outcome.output.claim()
    with ExitStack() as held:
        with open_view(logger, outcome.path, plan.key(), yaml.safe_load(outcome.config)) as view:
            make(plan.store, plan.trainer, artifacts, partial(show, outcome, view, {}), REPORT_COST)
            held.enter_context(outcome.alone())
            if outcome.is_done(logger):  # by another process with the same command, which was quicker
                return tell(outcome)
            put_together(outcome, view, start)
        outcome.seal(logger)


def at_one_node(plan: Plan, artifacts: Sequence[Artifact]) -> Plan:
    """Return the plan for the node that has rank 0, so that only one process shows a run and fills its folder.

    With several nodes all artifacts are computed first, and the processes of the other nodes end here.
    """
    if plan.trainer.nodes > 1:
        make(plan.store, plan.trainer, artifacts)
        plan = replace(plan, trainer=replace(plan.trainer, nodes=1))
    return plan


def put_together(outcome: Outcome, view: View, start: float) -> None:
    """The run folder from what the store has since a moment of time.perf_counter; prints the table."""
    with outcome.plan.store.explained():
        outcome.assemble(time.perf_counter() - start)
    view.finish()
    tell(outcome)


def tell(outcome: Outcome) -> None:
    print(outcome.table())
    print(outcome.path / "report.html")


def show(outcome: Outcome, view: View, names: Mapping[str, str], artifact: Artifact) -> None:
    """Show the curves of an artifact in the store.

    Args:
        names: Row of each merge by key, if there are several rows.
    """
    if curves := outcome.curves(artifact):
        view.curves(artifact.stage, " ".join(filter(None, [names.get(artifact.key), artifact.name])), curves)
