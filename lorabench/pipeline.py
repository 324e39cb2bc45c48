"""The one loop: pairs -> personalise -> merge -> generate -> score -> report.

Every artifact comes from the store or is made into it by a worker; the run folder is then put together from them.
Stopped at any moment, the same command goes on from what is stored.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from lorabench.config import LoggerSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import Prompts
from lorabench.loggers.views import View, open_view
from lorabench.outcome import Outcome
from lorabench.plan import STAGES, Item, Make, Plan, Row, frame_rows
from lorabench.store import Store
from lorabench.weights import scorer_folder, sdxl_folder
from lorabench.workers import Pool

REPORT_COST = 300.0  # as Item.cost

Stages = dict[str, list[Item]]


@dataclass(frozen=True)
class Pipeline:
    """One run: its plan, where it goes and how it is shown."""

    plan: Plan
    outcome: Outcome
    logger: LoggerSpec

    @classmethod
    def of(cls, cfg: DictConfig, method: str, ablation: str, folder: Path) -> "Pipeline":
        """The run of a composed config.  Raises UserError for every mistake that can be seen beforehand."""
        store = Store(Path(cfg.store))
        folder.mkdir(parents=True, exist_ok=True)
        store.root.mkdir(parents=True, exist_ok=True)
        model, scorers = sdxl_folder(cfg.model.path), scorer_folder(cfg.scorers.path)
        typed: Any = {name: OmegaConf.to_object(cfg[name]) for name in ("dataset", "lora", "generate", "trainer")}
        settings: Any = OmegaConf.to_container(cfg.method, resolve=True)
        chosen = Row(method, ablation, settings)
        plan = Plan(
            store=store,
            pairs=load_pairs(typed["dataset"], Prompts(**cfg.prompts)),
            rows=frame_rows(chosen, typed["dataset"]),
            dataset=typed["dataset"],
            model=model,
            model_name=cfg.model.name,
            scorers=scorers,
            weights=store.digest(model),
            scorers_digest=store.digest(scorers),
            lora=typed["lora"],
            generation=typed["generate"],
            trainer=typed["trainer"],
            seed=cfg.seed,
        )
        logger: Any = OmegaConf.to_object(cfg.logger)
        return cls(plan, Outcome(folder, plan, OmegaConf.to_yaml(cfg, resolve=True)), logger)

    def run(self) -> None:
        """Make what is missing, write the run folder and print the table."""
        if not self.outcome.is_done(self.logger):
            start = time.perf_counter()
            stages = {stage: self.plan.items(stage) for stage in STAGES}
            missing = {stage: [item for item in items if not self.find(item)] for stage, items in stages.items()}
            view = open_view(self.logger, self.outcome.path)
            with Bar(sum(item.cost for items in missing.values() for item in items)) as bar:
                self.make(stages, missing, view, bar)
                bar.start("report", [])
                self.outcome.assemble(time.perf_counter() - start)
                view.finish(self.outcome.captions())
                self.outcome.seal(self.logger)
                bar.finish()
        print(self.outcome.table())
        print(self.outcome.path / "report.html")

    def make(self, stages: Stages, missing: Stages, view: View, bar: "Bar") -> None:
        """Everything that the store lacks, stage by stage."""
        trainer = self.plan.trainer
        with Pool(trainer.workers, trainer.threads) as pool:
            for stage, items in stages.items():
                lacking = missing[stage]
                for item in items:
                    if item not in lacking:
                        self.show(view, item)
                if lacking:
                    bar.start(stage, lacking)
                for index in pool.run([Make(self.plan.store, item) for item in lacking], bar.advance):
                    bar.complete(index)
                    self.show(view, lacking[index])

    def find(self, item: Item) -> Path | None:
        return self.plan.store.find(item.stage, item.parts)

    def show(self, view: View, item: Item) -> None:
        curves = self.outcome.curves(item)
        if curves:
            view.curves(item.stage, item.name, curves)


class Bar:
    """One progress bar with the time left for the whole job; its unit is one UNet row."""

    def __init__(self, work: float) -> None:
        layout = "{desc:<18} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"
        self.live = sys.stderr.isatty()
        every = 0.2 if self.live else 10  # seconds: a log file is not a screen
        self.bar = tqdm(total=work + REPORT_COST, bar_format=layout, smoothing=0.05, mininterval=every)
        self.items: list[Item] = []
        self.done: dict[int, float] = {}

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start(self, stage: str, items: list[Item]) -> None:
        """Items of the next stage, to be named by their index from now on."""
        self.stage, self.items, self.done, self.finished = stage, items, {}, 0
        self.describe()

    def advance(self, index: int, steps: int) -> None:
        item = self.items[index]
        share = item.cost * min(steps / max(item.steps, 1), 1.0)
        self.bar.update(share - self.done.get(index, 0.0))
        self.done[index] = share

    def complete(self, index: int) -> None:
        self.advance(index, max(self.items[index].steps, 1))
        self.finished += 1
        self.describe()

    def finish(self) -> None:
        self.bar.update(self.bar.total - self.bar.n)

    def describe(self) -> None:
        count = f" {self.finished}/{len(self.items)}" if self.items else ""
        self.bar.set_description_str(f"{self.stage}{count}", refresh=self.live)
