"""The one loop: pairs -> personalise -> merge -> generate -> score -> report.

Every artifact comes from the store or is made into it by a worker; the run folder is then put together from them.
Stopped at any moment, the same command goes on from what is stored.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from lorabench import method as methods
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import ROLES, Prompts
from lorabench.errors import UserError
from lorabench.loggers.views import View, open_view
from lorabench.metrics.files import MICRO_SCORERS, scorer_set
from lorabench.models.files import model_files
from lorabench.outcome import Outcome
from lorabench.plan import FLOORS, STAGES, Item, Make, Plan, Row, frame_rows
from lorabench.store import Store
from lorabench.tasks import device_name
from lorabench.workers import Pool

REPORT_COST = 300.0  # as Item.cost

Stages = dict[str, list[Item]]


def plan_of(cfg: DictConfig, rows: list[Row] | None = None) -> Plan:
    """The plan of a composed config, of the given rows or of the configured method between the frame rows.

    Raises UserError for every mistake that can be seen beforehand.
    """
    store = Store(Path(cfg.store))
    store.root.mkdir(parents=True, exist_ok=True)
    groups = ("model", "scorers", "dataset", "lora", "generate", "merge", "trainer")
    typed: Any = {name: OmegaConf.to_object(cfg[name]) for name in groups}
    model, scorers = model_files(typed["model"]), scorer_set(typed["scorers"])
    pairs = load_pairs(typed["dataset"], Prompts(**cfg.prompts))
    if rows is None:
        choices = HydraConfig.get().runtime.choices
        settings = asdict(methods.build(cfg.method))
        chosen = Row(choices["method"], choices["ablation"], settings, choices["method"] in FLOORS)
        if chosen.method().concepts == "uniform" and (chosen.live or all(pair.is_single for pair in pairs)):
            raise UserError("method.concepts=uniform says nothing of single pairs; type dataset.contents=[mug_1,cat_1]")
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
    )


def run(cfg: DictConfig, folder: Path) -> None:
    """The whole benchmark of the configured method into its run folder; prints the table."""
    plan = plan_of(cfg)
    logger: Any = OmegaConf.to_object(cfg.logger)
    outcome = Outcome(folder, plan, OmegaConf.to_yaml(cfg, resolve=True))
    if not outcome.is_done(logger):
        device_name(plan.trainer.accelerator)  # is it there?
        check_methods(plan)
        check_scorers(plan)
        start = time.perf_counter()
        view = open_view(logger, outcome.path)
        make(plan, {stage: plan.items(stage) for stage in STAGES}, partial(show, outcome, view), REPORT_COST)
        outcome.assemble(time.perf_counter() - start)
        view.finish(outcome.captions())
        outcome.seal(logger)
    print(outcome.table())
    print(outcome.path / "report.html")


def check_methods(plan: Plan) -> None:
    """Show each method the UNet's layers; UserError where it does not fit them, before any LoRA is trained."""
    from lorabench.models.shapes import Blocks, adapted, without_weights

    unet = without_weights(plan.model.unet_config())
    for roles in {pair.roles for pair in plan.pairs}:
        for row in plan.rows:
            if row.settings is not None:
                method = row.method()
                blocks: Blocks = {role: method.lora(role, plan.lora).blocks for role in ROLES}
                method.gates(adapted(unet, plan.lora.rank, roles, blocks), plan.seed)


def check_scorers(plan: Plan) -> None:
    """UserError where a scorer's weights do not fit its architecture, before any LoRA is trained."""
    for files in plan.scorers.scorers:
        if not files.weights.is_relative_to(MICRO_SCORERS):  # those are tested
            from lorabench.metrics.load import check_scorer

            check_scorer(files)


def make(plan: Plan, stages: Stages, show: Callable[[Item], None] | None = None, extra: float = 0.0) -> None:
    """Everything that the store lacks, stage by stage, with one progress bar.

    show: told of each item that is there.  extra: of the bar, work that follows.
    """
    jobs = {stage: plan.jobs(stage, [i for i in items if not found(plan, i)]) for stage, items in stages.items()}
    cost = sum(job.cost for made in jobs.values() for job in made)
    with Bar(cost + extra) as bar, Pool(plan.trainer.workers, plan.trainer.threads) as pool:
        for stage, items in stages.items():
            lacking = {item.key for job in jobs[stage] for item in job.items}
            for item in items:
                if show and item.key not in lacking:
                    show(item)
            if jobs[stage]:
                bar.start(stage, jobs[stage])
            for index in pool.run(jobs[stage], bar.advance):
                bar.complete(index)
                for item in jobs[stage][index].items:
                    if show:
                        show(item)
        bar.start("report", [])
        bar.finish()


def found(plan: Plan, item: Item) -> Path | None:
    return plan.store.find(item.stage, item.parts)


def show(outcome: Outcome, view: View, item: Item) -> None:
    curves = outcome.curves(item)
    if curves:
        view.curves(item.stage, item.name, curves)


class Bar:
    """One progress bar with the time left for the whole job; its unit is one UNet row."""

    def __init__(self, work: float) -> None:
        layout = "{desc:<18} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"
        self.live = sys.stderr.isatty()
        every = 0.2 if self.live else 10  # seconds: a log file is not a screen
        self.bar = tqdm(total=work, bar_format=layout, smoothing=0.05, mininterval=every)
        self.jobs: list[Make] = []
        self.done: dict[int, float] = {}

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start(self, stage: str, jobs: list[Make]) -> None:
        """Jobs of the next stage, to be named by their index from now on."""
        self.stage, self.jobs, self.done, self.finished = stage, jobs, {}, 0
        self.describe()

    def advance(self, index: int, steps: int) -> None:
        job = self.jobs[index]
        share = job.cost * min(steps / max(job.steps, 1), 1.0)
        self.bar.update(share - self.done.get(index, 0.0))
        self.done[index] = share

    def complete(self, index: int) -> None:
        self.advance(index, max(self.jobs[index].steps, 1))
        self.finished += 1
        self.describe()

    def finish(self) -> None:
        self.bar.update(self.bar.total - self.bar.n)

    def describe(self) -> None:
        count = f" {self.finished}/{len(self.jobs)}" if self.jobs else ""
        self.bar.set_description_str(f"{self.stage}{count}", refresh=self.live)
