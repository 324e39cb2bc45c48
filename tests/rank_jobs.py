"""Jobs for ranks that need no model: they record that they ran, or fail in different ways."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorabench.base import UserError
from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, MergeSpec, TrainerSpec
from lorabench.engine.artifact import Artifact
from lorabench.engine.store import Store
from lorabench.engine.work import Progress
from lorabench.models.files import ModelFiles
from lorabench.scoring.files import ScorerSet
from lorabench.tasks.plan import Plan

Work = Callable[[Path, Progress], None]
WORLD = MicroworldSpec("microworld", ["mug_1"], ["ink_1"], None, 2, 2, 2)


def fine(folder: Path, progress: Progress) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    progress(1)


def mistaken(folder: Path, progress: Progress) -> None:
    raise UserError("this is wrong: type that")


def broken(folder: Path, progress: Progress) -> None:
    raise ValueError("ours")


def killed(folder: Path, progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Slow:
    """Record the process id, then take a minute."""

    log: Path

    def __call__(self, folder: Path, progress: Progress) -> None:
        (self.log / str(os.getpid())).touch()
        time.sleep(60)


@dataclass(frozen=True)
class Predicting:
    """Run `Slow` inside Lightning, whose SIGTERM handler sets a flag that it does not read while predicting."""

    log: Path

    def __call__(self, folder: Path, progress: Progress) -> None:
        import pytorch_lightning as pl
        import torch

        from lorabench.engine.lightning import quiet_trainer

        slow = Slow(self.log)

        class Module(pl.LightningModule):
            def predict_step(self, batch: int) -> None:
                slow(folder, progress)

        quiet_trainer(torch.device("cpu"), "32-true").predict(Module(), [0])


@dataclass(frozen=True)
class After:
    """Run a job once a slow job has started in another process."""

    log: Path
    work: Work

    def __call__(self, folder: Path, progress: Progress) -> None:
        while not list(self.log.iterdir()):
            time.sleep(0.01)
        self.work(folder, progress)


def item(number: int, work: Work) -> Artifact:
    return Artifact("personalize", f"n{number}", 1, {"n": number}, work)


def plan_at(root: Path, trainer: TrainerSpec, spec: LoRASpec) -> Plan:
    """Build a plan in which only the store and the trainer matter."""
    nowhere = ModelFiles(root / "model", root / "model")
    return Plan(
        store=Store.open(root / "store"), pairs=[], rows=[], dataset=WORLD, model=nowhere, model_name="none",
        scorers=ScorerSet(()), weights="", scorers_digest="", lora=spec, generation=GenerateSpec(1, 1, 1.0, 1),
        merging=MergeSpec(1), trainer=trainer, seed=0,
    )  # fmt: skip
