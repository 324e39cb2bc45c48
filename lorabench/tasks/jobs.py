"""The work of each artifact: read its inputs, call the stage, write the files.

Every function takes the folder to fill and a progress function last, and imports the heavy packages itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.data.pairs import Pair
from lorabench.engine.devices import device_name
from lorabench.engine.work import BatchWork, Progress
from lorabench.merging.merge import Merge
from lorabench.models.files import ModelFiles
from lorabench.personalization.training import Environment, Job
from lorabench.scoring.description import ScorerFiles

if TYPE_CHECKING:
    from lorabench.models.model import DiffusionModel
    from lorabench.personalization.class_images import ClassImages
    from lorabench.scoring.scorer import Scorer

CURVES_FILE = "curves.json"
NOTES_FILE = "notes.json"  # facts that a training reports besides its adapters


def class_images(
    model: ModelFiles, trainer: TrainerSpec, images: ClassImages, folder: Path, progress: Progress
) -> None:
    """Write the images of prior preservation."""
    from lorabench.engine.costs import cost

    base = load_model(model, trainer.accelerator)
    with cost(folder, base.denoiser):
        images.generate(base, trainer, folder, progress)


@dataclass(frozen=True)
class Personalize:
    """One training.

    Args:
        prior: Class images and their folder.
        scorers: By kind, for jobs that score images.
        needed: Folder of each job in `Job.needs`.
        backbone: File of the change of the base weights; None for the plain model.
    """

    model: ModelFiles
    trainer: TrainerSpec
    job: Job
    seed: int
    generation: GenerateSpec
    prior: tuple[ClassImages, Path] | None
    scorers: Mapping[str, ScorerFiles] = field(default_factory=dict)
    needed: tuple[Path, ...] = ()
    backbone: Path | None = None

    def __call__(self, scratch: Path, folder: Path, progress: Progress) -> None:
        """Write <output>.safetensors of each adapter, and samples/<step>.png if the recipe asks for them.

        Args:
            scratch: Folder that a killed training resumes from.
        """
        from lorabench.engine.costs import cost
        from lorabench.engine.curves import Curves
        from lorabench.lora.files.metadata import trained_layers

        base, curves = load_model(self.model, self.trainer.accelerator), Curves()
        images = self.prior[0].references(self.prior[1]) if self.prior else []
        samples = scratch / "samples"
        env = Environment(
            self.seed, self.trainer, progress, curves, images, scratch, samples, self.generation, self.scorer,
            needed=self.needed, folder=folder,
        )  # fmt: skip
        with cost(folder, base.denoiser) as costs, on_backbone(base, self.backbone) as key:
            adapters = self.job.run(base, env)
            for name, adapter in adapters.items():
                adapter.backbone = key
                adapter.metadata |= trained_layers(self.job.recipe.targets)
                adapter.save(folder / f"{name}.safetensors", format="store")
            costs["learned_parameters"] = sum(self.job.learned(adapter) for adapter in adapters.values())
        curves.write(folder)
        if env.notes:
            (folder / NOTES_FILE).write_text(json.dumps(env.notes))
        if samples.is_dir():
            shutil.copytree(samples, folder / "samples")

    def scorer(self, kind: str) -> Scorer:
        """Return the scorer of a kind, loaded once per process."""
        return load_scorer(self.scorers[kind], device_name(self.trainer.accelerator))


@contextmanager
def on_backbone(base: DiffusionModel, file: Path | None) -> Iterator[str | None]:
    """Change the base weights within the block; yields the key of the change, None without."""
    from lorabench.lora.adapter import Adapter

    with base.changed(None if file is None else Adapter.load(file)):
        yield None if file is None else file.parent.name


@dataclass(frozen=True)
class MergePair(BatchWork):
    """The merge of one pair.

    Args:
        loras: Files of the LoRAs of its concepts.
        batch_size: Most pairs in one batch.
        backbone: File of the change of the base weights; None for the plain model.
    """

    model: ModelFiles
    trainer: TrainerSpec
    merge: Merge
    loras: tuple[Path, ...]
    pair: Pair
    seed: int
    batch_size: int = 1
    backbone: Path | None = None

    @classmethod
    def run(cls, works: Sequence[MergePair], folders: Sequence[Path], progress: Progress) -> None:
        """Write the merged LoRA and the learned masks, losses and costs, for each pair."""
        from lorabench.engine.costs import COST_FILE, measured
        from lorabench.lora.adapter import LoRA
        from lorabench.merging.masks import effective_ranks
        from lorabench.merging.merge import MergeEnvironment, MergeItem

        first = works[0]
        base, merge = load_model(first.model, first.trainer.accelerator), first.merge
        env = MergeEnvironment(base.layers, base, first.seed, first.trainer, progress)
        items = [MergeItem(tuple(LoRA.load(path) for path in each.loras), each.pair) for each in works]
        costs: dict[str, Any] = {}
        with measured(costs, base.denoiser), on_backbone(base, first.backbone):
            results = merge.merge_pairs(items, env)
        for each in ("seconds", "denoiser_passes"):
            costs[each] /= len(items)
        for item, result, folder in zip(items, results, folders, strict=True):
            if parts := merge.parts(item.loras, item.pair.roles, result.masks):  # a diagnostic, outside the clock
                result = replace(result, ranks=effective_ranks(parts.adapters, parts.masks))
            result.save(folder)
            (folder / CURVES_FILE).write_text(json.dumps(result.losses))
            (folder / COST_FILE).write_text(json.dumps(costs | {"learned_parameters": result.learned_params}))


@cache
def load_scorer(files: ScorerFiles, device: str) -> Scorer:
    """Return a scorer, loaded once per process."""
    from lorabench.scoring import load

    quiet()
    return load.load_scorer(files, device)


@cache
def load_model(files: ModelFiles, accelerator: str) -> DiffusionModel:
    """Return the base model, loaded once per process."""
    from lorabench.models.load import load

    quiet()
    return load(files, device_name(accelerator))


def quiet() -> None:
    """Silence messages of Lightning and diffusers at every fit; the run has one progress bar."""
    import logging
    import warnings

    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
