"""task=benchmark: pairs -> personalize -> merge -> generate -> score -> report.

Worker processes compute the artifacts that the store lacks. The run folder is assembled from the store afterwards. An
interrupted run resumes with the same command.
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

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import Pair
from lorabench.data.prompt_length import check_prompts
from lorabench.data.scenes import Prompts
from lorabench.data.uses import JOINT, USES, Use
from lorabench.engine.artifact import Artifact
from lorabench.engine.make import make
from lorabench.engine.store import Store
from lorabench.models.files import model_files
from lorabench.report.loggers.view import View
from lorabench.report.loggers.views import logger_of, open_view
from lorabench.scoring.files import scorer_set
from lorabench.tasks.checks import check_plan
from lorabench.tasks.composition import ablation_of, method_of
from lorabench.tasks.plan import Plan
from lorabench.tasks.prompts import fitting, readers_of, scorer_readers
from lorabench.tasks.rows import Row, check_uniform, rows_with_baselines
from lorabench.tasks.run_folder import RunWriter

REPORT_COST = 300.0  # in the unit of Artifact.cost


def plan_of(cfg: DictConfig, rows: list[Row] | None = None) -> Plan:
    """Return the plan of a composed configuration.

    Args:
        cfg: The configuration.
        rows: Rows of the table. None: the baselines, the oracle and the configured method.

    Raises:
        UserError: For every mistake that can be found without computing.
    """
    store = Store.open(Path(cfg.store))
    groups = ("model", "scorers", "dataset", "lora", "generate", "merge", "trainer")
    typed: Any = {name: OmegaConf.to_object(cfg[name]) for name in groups}
    model, scorers = model_files(typed["model"]), scorer_set(typed["scorers"])
    prompts = Prompts(**cfg.prompts)
    pairs = load_pairs(typed["dataset"], prompts)
    readers = readers_of(model, cfg.model.name)
    check_prompts(filter(None, [typed["generate"].negative]), readers)
    pairs, left_out = fitting(pairs, prompts, readers, scorer_readers(scorers))
    uses = uses_of(cfg)
    check_grounds(prompts, pairs, uses)
    if rows is None:
        chosen = Row.chosen(method_of(cfg), ablation_of())
        check_uniform([chosen], pairs)
        rows = rows_with_baselines(chosen, typed["dataset"], pairs)
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
        uses=uses,
        left_out=left_out,
    )


def check_grounds(prompts: Prompts, pairs: Sequence[Pair], uses: Sequence[Use]) -> None:
    """Check that scenes of photographs are generated.

    Raises:
        UserError: If they are not.
    """
    if prompts.contexts != "none" and any(pair.content_scenes for pair in pairs) and "content" not in uses:
        raise UserError(
            f"prompts.contexts={prompts.contexts} on the microworld is for photographs of the subject by itself; "
            "use uses=[joint,content]"
        )


def uses_of(cfg: DictConfig) -> tuple[Use, ...]:
    """Return the configured uses of images, those of the protocol's columns, and the joint use.

    Raises:
        UserError: If there is no such use.
    """
    for use in cfg.uses:
        choose("uses", use, USES)
    wanted = {JOINT, *cfg.uses, *(column.use for column in cfg.protocol.columns)}
    return tuple(use for use in USES if use in wanted)


def run(cfg: DictConfig, folder: Path) -> None:
    """Run the benchmark of the configured method into its run folder, and print the table."""
    plan = plan_of(cfg)
    logger = logger_of(cfg)
    writer = RunWriter(folder, plan, OmegaConf.to_yaml(cfg, resolve=True))
    if writer.is_done(logger):
        return print_result(writer)
    check_plan(plan)
    start, artifacts = time.perf_counter(), plan.all_artifacts()
    plan = at_one_node(plan, artifacts)
    writer.output.claim()
    with ExitStack() as held:
        with open_view(logger, writer.path, plan.key(), yaml.safe_load(writer.config)) as view:
            make(plan.store, plan.trainer, artifacts, partial(show, writer, view, {}), REPORT_COST)
            held.enter_context(writer.locked())
            if writer.is_done(logger):  # another process with the same command was quicker
                return print_result(writer)
            put_together(writer, view, start)
        writer.seal(logger)


def at_one_node(plan: Plan, artifacts: Sequence[Artifact]) -> Plan:
    """Return the plan for the node that has rank 0, so that only one process shows a run and fills its folder.

    With several nodes all artifacts are computed first, and the processes of the other nodes end here.
    """
    if plan.trainer.nodes > 1:
        make(plan.store, plan.trainer, artifacts)
        plan = replace(plan, trainer=replace(plan.trainer, nodes=1))
    return plan


def put_together(writer: RunWriter, view: View, start: float) -> None:
    """Assemble the run folder from the store and print the table. `start` is a time of time.perf_counter."""
    with writer.plan.store.explained():
        writer.assemble(time.perf_counter() - start)
    view.finish()
    print_result(writer)


def print_result(writer: RunWriter) -> None:
    """Print the table and the paths of the grid and the page."""
    print(writer.table())
    print(writer.path / "grid.png")
    print(writer.path / "report.html")


def show(writer: RunWriter, view: View, names: Mapping[str, str], artifact: Artifact) -> None:
    """Show the curves of an artifact in the store.

    Args:
        writer: Writer of the run folder.
        view: The logger's view of the run.
        names: Row of each merge by key, if there are several rows.
        artifact: The artifact.
    """
    if curves := writer.curves(artifact):
        view.curves(artifact.stage, " ".join(filter(None, [names.get(artifact.key), artifact.name])), curves)
