"""The work of each artifact: read its inputs, call the stage, write the files.

Every function takes the folder to fill and a progress function last, and imports the heavy packages itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.config.schemas import GenerateSpec, LoRASpec, TrainerSpec
from lorabench.data.pairs import Concept, Pair
from lorabench.engine.devices import device_name
from lorabench.engine.work import BatchWork, Progress
from lorabench.models.files import ModelFiles
from lorabench.scoring.description import ScorerFiles

if TYPE_CHECKING:
    from lorabench.models.model import DiffusionModel
    from lorabench.personalization.class_images import ClassImages
    from lorabench.scoring.scorer import Scorer

CURVES_FILE = "curves.json"


def nothing(folder: Path, progress: Progress) -> None:
    """Stand for the work of an artifact whose scratch folder is still to be named."""
    raise NotImplementedError


def class_images(
    model: ModelFiles, trainer: TrainerSpec, images: ClassImages, folder: Path, progress: Progress
) -> None:
    """Write the images of prior preservation."""
    from lorabench.engine.costs import cost

    base = load_model(model, trainer.accelerator)
    with cost(folder, base.denoiser):
        images.generate(base, trainer, folder, progress)


def personalise(
    model: ModelFiles, trainer: TrainerSpec, concept: Concept, spec: LoRASpec, seed: int, generation: GenerateSpec,
    prior: tuple[ClassImages, Path] | None, scratch: Path, folder: Path, progress: Progress, in_core: bool = False,
) -> None:  # fmt: skip
    """Write lora.safetensors of a concept, and samples/<step>.png if the recipe asks for them.

    Args:
        prior: Class images and their folder.
        scratch: Folder that a killed training resumes from.
    """
    from lorabench.engine.costs import cost
    from lorabench.engine.curves import Curves
    from lorabench.personalization.dreambooth import personalise
    from lorabench.personalization.samples import Look

    base, curves = load_model(model, trainer.accelerator), Curves()
    shown = prior[0].references(prior[1]) if prior else []
    look = Look(scratch / "samples", generation)
    with cost(folder, base.denoiser) as costs:
        lora = personalise(
            base,
            concept,
            spec,
            seed,
            trainer,
            progress,
            curves,
            shown,
            look,
            scratch,
            in_core,
        )
        lora.save(folder / "lora.safetensors", format="store")
        costs["learned_parameters"] = lora.parameters("down") if in_core else lora.parameters()
    curves.write(folder)
    if look.folder.is_dir():
        shutil.copytree(look.folder, folder / "samples")


def personalise_aligned(
    model: ModelFiles, trainer: TrainerSpec, concept: Concept, spec: LoRASpec, seed: int, scratch: Path, folder: Path,
    progress: Progress,
) -> None:  # fmt: skip
    """content.safetensors and style.safetensors of a subject before and after styling; scratch: as above."""
    from lorabench.engine.costs import cost
    from lorabench.engine.curves import Curves
    from lorabench.personalization.aligned import train_aligned

    base, curves = load_model(model, trainer.accelerator), Curves()
    with cost(folder, base.denoiser) as costs:
        loras = train_aligned(base, concept, spec, seed, trainer, progress, curves, scratch)
        for role, lora in loras.items():
            lora.save(folder / f"{role}.safetensors", format="store")
        costs["learned_parameters"] = sum(lora.parameters("up") for lora in loras.values())
    curves.write(folder)


@dataclass(frozen=True)
class Merge(BatchWork):
    """The merge of one pair.

    Args:
        loras: Files of the LoRAs of its concepts.
        batch_size: Most pairs in one batch.
    """

    model: ModelFiles
    trainer: TrainerSpec
    settings: dict[str, Any]
    loras: tuple[Path, ...]
    pair: Pair
    seed: int
    batch_size: int = 1

    @classmethod
    def run(cls, works: Sequence[Merge], folders: Sequence[Path], progress: Progress) -> None:
        """Write merged.safetensors and what the method learned, for each pair."""
        from lorabench.engine.costs import COST_FILE, measured
        from lorabench.lora.adapter import LoRA
        from lorabench.merging.merge import MergeItem, merge_all
        from lorabench.merging.method import build

        first = works[0]
        base, method = load_model(first.model, first.trainer.accelerator), build(first.settings)
        items = [MergeItem(tuple(LoRA.load(path) for path in each.loras), each.pair) for each in works]
        costs: dict[str, Any] = {}
        with measured(costs, base.denoiser):
            results = merge_all(base, method, items, first.seed, first.trainer, progress)
        for each in ("seconds", "denoiser_passes"):
            costs[each] /= len(items)
        for result, folder in zip(results, folders, strict=True):
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
    """The base model, once a process."""
    from lorabench.models.load import load

    quiet()
    return load(files, device_name(accelerator))


def quiet() -> None:
    """Lightning and diffusers announce themselves at every fit; the run has one progress bar."""
    import logging
    import warnings

    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
