"""What a worker does for one item: read its inputs, call the stage, write the files.

Every function takes the folder to fill and a progress function last, and imports the heavy packages itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.config import GenerateSpec, LoRASpec, TrainerSpec
from lorabench.data.pairs import Concept, Pair
from lorabench.workers import Progress

if TYPE_CHECKING:
    from lorabench.metrics.scorer import Scorer
    from lorabench.metrics.truth import Truth
    from lorabench.models.sdxl import SDXL

COST_FILE = "cost.json"
CURVES_FILE = "curves.json"


def personalise(
    model: Path, trainer: TrainerSpec, concept: Concept, spec: LoRASpec, seed: int, folder: Path, progress: Progress
) -> None:
    """lora.safetensors of a concept."""
    from lorabench.loggers.curves import Curves
    from lorabench.stages.personalise import personalise

    base, curves = load_model(model, trainer.accelerator), Curves()
    with cost(folder, trainer):
        lora = personalise(base, concept, spec, seed, trainer, progress, curves)
        lora.save(folder / "lora.safetensors")
    curves.write(folder)


def merge(
    model: Path, trainer: TrainerSpec, settings: dict[str, Any], content: Path, style: Path, pair: Pair, seed: int,
    folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """merged.safetensors and what the method learned, of a pair."""
    from lorabench.lora import LoRA
    from lorabench.method import build
    from lorabench.stages.merge import merge

    base = load_model(model, trainer.accelerator)
    subject, look = (LoRA.load(path / "lora.safetensors") for path in (content, style))
    with cost(folder, trainer) as costs:
        result = merge(base, build(settings), subject, look, pair, seed, trainer, progress)
        result.save(folder)
        costs["learned_parameters"] = result.learned_params
    (folder / CURVES_FILE).write_text(json.dumps(result.losses))


def generate(
    model: Path, trainer: TrainerSpec, settings: dict[str, Any], content: Path, style: Path, merged: Path | None,
    prompt: str, seeds: list[int], spec: GenerateSpec, folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """<index>.png, one a seed."""
    from PIL import Image

    from lorabench.lora import LoRA
    from lorabench.method import build
    from lorabench.stages.generate import generate
    from lorabench.stages.merge import MergeResult

    base = load_model(model, trainer.accelerator)
    loras = [LoRA.load(path / "lora.safetensors") for path in (content, style)]
    gates = MergeResult.load(merged).gates if merged else None
    with cost(folder, trainer):
        prompts = [prompt] * len(seeds)
        images = generate(base, build(settings), loras, gates, prompts, seeds, spec, trainer, progress)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:02d}.png")


def oracle(pair: Pair, count: int, folder: Path, progress: Progress) -> None:
    """<index>.png: the subject drawn in the style by the world itself."""
    from lorabench.data.microworld_pairs import oracle

    for index in range(count):
        oracle(pair, index).save(folder / f"{index:02d}.png")
        progress(index + 1)


def score(
    scorers: Path, trainer: TrainerSpec, pair: Pair, images: Path, seeds: list[int], folder: Path, progress: Progress
) -> None:
    """scores.parquet: one row an image x metric x reference, without what the images are called in a run."""
    import pandas as pd
    import torch

    from lorabench.stages.fitting import quiet_trainer
    from lorabench.stages.score import score

    device = torch.device(device_name(trainer.accelerator))
    found, truth = load_scorers(scorers, device.type)
    paths = sorted(images.glob("*.png"))
    with cost(folder, trainer):
        prompts = [pair.prompt] * len(paths)
        runner = quiet_trainer(device, "32-true")
        rows = score(paths, pair, prompts, found, seeds=seeds, keys={}, truth=truth, trainer=runner)
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet", index=False)


@cache
def load_scorers(root: Path, device: str) -> tuple[list[Scorer], Truth | None]:
    """The scorers of a folder, and the readout of the microworld's truth where it lies beside them; once a process."""
    from lorabench.metrics import load
    from lorabench.metrics.truth import load_truth

    quiet()
    found = load.load_scorers(root, device)
    return found, load_truth(found, root) if (root / "truth").is_dir() else None


@cache
def load_model(path: Path, accelerator: str) -> SDXL:
    """The base model, once a process."""
    from lorabench.models.sdxl import SDXL

    quiet()
    return SDXL.load(path, device_name(accelerator))


def device_name(accelerator: str) -> str:
    import torch

    return "cuda" if accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available()) else "cpu"


def quiet() -> None:
    """Lightning and diffusers announce themselves at every fit; the run has one progress bar."""
    import logging
    import warnings

    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


@contextmanager
def cost(folder: Path, trainer: TrainerSpec) -> Iterator[dict[str, Any]]:
    """Write cost.json: seconds of the block, peak GPU memory in bytes, and what the block adds."""
    import torch

    on_gpu = device_name(trainer.accelerator) == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    costs: dict[str, Any] = {}
    start = time.perf_counter()
    yield costs
    costs["seconds"] = time.perf_counter() - start
    if on_gpu:
        costs["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    (folder / COST_FILE).write_text(json.dumps(costs))
