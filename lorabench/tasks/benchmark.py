"""The one loop: pairs -> personalise -> merge -> generate -> score -> report.

Every artifact comes from the store or is made into it by a worker; the run folder is then put together from them.
Stopped at any moment, the same command goes on from what is stored.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import ROLES, Prompts
from lorabench.engine.artifact import Artifact
from lorabench.engine.devices import device_name
from lorabench.engine.make import make
from lorabench.engine.store import Store
from lorabench.merging import method as methods
from lorabench.models.files import model_files
from lorabench.models.shapes import layer_map
from lorabench.report.loggers.view import View
from lorabench.report.loggers.views import open_view
from lorabench.scoring.files import MICRO_SCORERS, scorer_set
from lorabench.tasks.plan import FLOORS, Plan, Row, frame_rows
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
    pairs = load_pairs(typed["dataset"], Prompts(**cfg.prompts))
    if rows is None:
        choices = HydraConfig.get().runtime.choices
        settings = asdict(methods.build(cfg.method))
        chosen = Row(choices["method"], choices["ablation"], settings, choices["method"] in FLOORS)
        if chosen.method().concepts == "uniform":
            if chosen.live or all(pair.is_single for pair in pairs):
                raise UserError(
                    "method.concepts=uniform says nothing of single pairs; type dataset.contents=[mug_1,cat_1]"
                )
            if chosen.method().combines:
                raise UserError(f"{chosen.name} has no masks to average; type method.concepts=joint")
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
    )


def run(cfg: DictConfig, folder: Path) -> None:
    """The whole benchmark of the configured method into its run folder; prints the table."""
    plan = plan_of(cfg)
    logger: Any = OmegaConf.to_object(cfg.logger)
    outcome = Outcome(folder, plan, OmegaConf.to_yaml(cfg, resolve=True))
    if outcome.is_done(logger):
        return tell(outcome)
    device_name(plan.trainer.accelerator)  # is it there?
    check_methods(plan)
    check_scorers(plan)
    start, artifacts = time.perf_counter(), plan.all_artifacts()
    plan = at_one_node(plan, artifacts)
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


def check_methods(plan: Plan) -> None:
    """Show each method the model's layers; UserError where it does not fit them, before any LoRA is trained."""
    layers = layer_map(plan.model)
    for roles in {pair.roles for pair in plan.pairs}:
        for row in plan.rows:
            if row.settings is not None:
                method = row.method()
                blocks = {role: method.lora(role, plan.lora).blocks for role in ROLES}
                adapted = layers.planned(plan.lora.rank, roles, blocks)
                method.check(adapted)
                method.masks(adapted, plan.seed)


def check_scorers(plan: Plan) -> None:
    """UserError where a scorer's weights do not fit its architecture, before any LoRA is trained."""
    for files in plan.scorers.scorers:
        if not files.weights.is_relative_to(MICRO_SCORERS):  # those are tested
            from lorabench.scoring.load import check_scorer

            check_scorer(files)


def show(outcome: Outcome, view: View, names: Mapping[str, str], artifact: Artifact) -> None:
    """Show the curves of an artifact in the store.

    Args:
        names: Row of each merge by key, if there are several rows.
    """
    if curves := outcome.curves(artifact):
        view.curves(artifact.stage, " ".join(filter(None, [names.get(artifact.key), artifact.name])), curves)
