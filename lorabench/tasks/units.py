"""Images are generated in units: a unit is a batch of images of one artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.data.pairs import Pair, Role
from lorabench.engine.work import Progress, UnitWork, counted
from lorabench.models.files import ModelFiles
from lorabench.tasks.jobs import load_model

if TYPE_CHECKING:
    from torch import Tensor


def batches_of(count: int, size: int) -> int:
    return -(-count // size)


@dataclass(frozen=True)
class Generate(UnitWork):
    """<index>.png, one a seed: with the merged LoRA where the method makes one, else with all LoRAs at their scales.

    loras: files; merged: the folder of the merge, what is drawn with.  seed: of the run.
    """

    model: ModelFiles
    trainer: TrainerSpec
    settings: dict[str, Any]
    loras: tuple[Path, ...]
    merged: Path | None
    pair: Pair
    seeds: tuple[int, ...]
    spec: GenerateSpec
    strength: dict[Role, float] | None
    seed: int

    @property
    def units(self) -> int:
        return batches_of(len(self.seeds), self.spec.batch)

    def compute(self, numbers: Sequence[int], folder: Path, progress: Progress) -> None:
        from PIL import Image

        from lorabench.lora.adapter import LoRA
        from lorabench.merging.merge import MergeResult, at_strength
        from lorabench.merging.method import build
        from lorabench.sampling.generate import Share, draw

        base, method = load_model(self.model, self.trainer.accelerator), build(self.settings)
        result = MergeResult.load(self.merged) if self.merged else None
        scenes = self.pair.shots(self.spec.images)

        def read() -> list[LoRA]:
            return [LoRA.load(path) for path in self.loras]

        def write(start: int, images: Tensor) -> None:
            for index, image in enumerate(images.numpy(), start):
                Image.fromarray(image).save(folder / file_name(index))

        with counted(numbers, folder, base.denoiser):
            strength: Mapping[Role, float] | None = self.strength
            if strength is not None and result is not None:
                result, strength = at_strength(base, method, result, read, self.pair, strength, self.seed, self.trainer)
            draw(
                base, method, read, self.pair.roles, result, scenes, self.seeds, self.spec, self.trainer, progress,
                strength, Share(numbers, write),
            )  # fmt: skip

    def finish(self, folder: Path) -> None:
        check_images(folder, len(self.seeds))


@dataclass(frozen=True)
class Oracle(UnitWork):
    """<index>.png: the subject drawn in the style by the world itself."""

    pair: Pair
    count: int

    @property
    def units(self) -> int:
        return 1

    def compute(self, numbers: Sequence[int], folder: Path, progress: Progress) -> None:
        from lorabench.data.microworld_pairs import oracle

        with counted(numbers, folder):
            for index in range(self.count):
                oracle(self.pair, index).save(folder / file_name(index))
                progress(index + 1)

    def finish(self, folder: Path) -> None:
        check_images(folder, self.count)


def file_name(index: int) -> str:
    return f"{index:02d}.png"


def check_images(folder: Path, count: int) -> None:
    missing = [index for index in range(count) if not (folder / file_name(index)).is_file()]
    if missing:
        raise RuntimeError(f"images {missing} were not written")
