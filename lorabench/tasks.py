"""What a worker does for one item: read its inputs, call the stage, write the files.

Every function takes the folder to fill and a progress function last, and imports the heavy packages itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Merge:
    """The merge of one pair; loras: the folders of the LoRAs of its concepts."""

    model: Path
    trainer: TrainerSpec
    settings: dict[str, Any]
    loras: tuple[Path, ...]
    pair: Pair
    seed: int

    def __call__(self, folder: Path, progress: Progress) -> None:
        merge([self], [folder], progress)


def merge(merges: Sequence[Merge], folders: Sequence[Path], progress: Progress) -> None:
    """merged.safetensors and what the method learned, of each pair; several go through one batch."""
    from lorabench.lora import LoRA
    from lorabench.method import build
    from lorabench.stages.merge import MergeItem, merge_all

    first = merges[0]
    base, method = load_model(first.model, first.trainer.accelerator), build(first.settings)
    items = [
        MergeItem(tuple(LoRA.load(path / "lora.safetensors") for path in each.loras), each.pair) for each in merges
    ]
    costs: dict[str, Any] = {}
    with measured(costs, first.trainer):
        results = merge_all(base, method, items, first.seed, first.trainer, progress)
    costs["seconds"] /= len(items)
    for result, folder in zip(results, folders, strict=True):
        result.save(folder)
        (folder / CURVES_FILE).write_text(json.dumps(result.losses))
        (folder / COST_FILE).write_text(json.dumps(costs | {"learned_parameters": result.learned_params}))


def generate(
    model: Path, trainer: TrainerSpec, settings: dict[str, Any], loras: tuple[Path, ...], merged: Path | None,
    pair: Pair, seeds: list[int], spec: GenerateSpec, folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """<index>.png, one a seed: with the merged LoRA where the method makes one, else with all LoRAs at their gains."""
    from PIL import Image

    from lorabench.lora import LoRA
    from lorabench.method import build
    from lorabench.stages.generate import generate
    from lorabench.stages.merge import MergeResult, live_sites

    base, method, prompts = load_model(model, trainer.accelerator), build(settings), [pair.prompt] * len(seeds)
    result = MergeResult.load(merged) if merged else None
    with cost(folder, trainer):
        if result is not None and method.exports:
            images = generate(base, [result.lora], prompts, seeds, spec, trainer, progress=progress)
        else:
            own = method.rebase([LoRA.load(path / "lora.safetensors") for path in loras])
            sites = live_sites(base, own, pair.roles)

            def gain(site: str, at: float) -> tuple[float, ...]:
                return method.gain(sites[site], at)

            gates = result.gates if result is not None else None
            images = generate(base, own, prompts, seeds, spec, trainer, gates, gain, progress)
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
def cost(folder: Path, trainer: TrainerSpec) -> Iterator[None]:
    """Write cost.json of the block."""
    costs: dict[str, Any] = {}
    with measured(costs, trainer):
        yield
    (folder / COST_FILE).write_text(json.dumps(costs))


@contextmanager
def measured(costs: dict[str, Any], trainer: TrainerSpec) -> Iterator[None]:
    """Note seconds of the block and peak GPU memory in bytes."""
    import torch

    on_gpu = device_name(trainer.accelerator) == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield
    costs["seconds"] = time.perf_counter() - start
    if on_gpu:
        costs["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
