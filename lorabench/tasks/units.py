"""Work units of image generation: a unit is a batch of images of one artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.data.concepts import Role
from lorabench.data.pairs import Pair
from lorabench.engine.work import Progress, UnitWork, counted
from lorabench.merging.merge import Merge, Merged
from lorabench.models.files import ModelFiles
from lorabench.sampling.rule import Sampling
from lorabench.tasks.jobs import load_model, on_backbone

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel
    from lorabench.sampling.encoder import ExpertEncoder
    from lorabench.sampling.parts import Parts


def batches_of(count: int, size: int) -> int:
    """Return the number of batches of a size for so many images."""
    return -(-count // size)


@dataclass(frozen=True)
class Generate(UnitWork):
    """Write <index>.png for each seed: with the merged LoRA if one can express the method, else with separate LoRAs.

    Args:
        model: Files of the base model.
        trainer: Device and precision.
        merge: The merge.
        sampling: The sampling rule.
        loras: Files of the LoRAs.
        merged: Folder of the merge; None samples with the separate LoRAs.
        pair: The pair with its scenes.
        seeds: Seed of each image.
        spec: Settings of image generation.
        strength: Additional scale of all LoRAs of a role.
        seed: Seed of the run.
        backbone: File of the change of the base weights; None for the plain model.
        encoder: Folder of the expert encoder, if the routing is learned.
    """

    model: ModelFiles
    trainer: TrainerSpec
    merge: Merge
    sampling: Sampling
    loras: tuple[Path, ...]
    merged: Path | None
    pair: Pair
    seeds: tuple[int, ...]
    spec: GenerateSpec
    strength: dict[Role, float] | None
    seed: int
    backbone: Path | None = None
    encoder: Path | None = None

    @property
    def units(self) -> int:
        return batches_of(len(self.seeds), self.spec.batch)

    def compute(self, numbers: Sequence[int], folder: Path, progress: Progress) -> None:
        from PIL import Image

        from lorabench.sampling.generate import Share, generate_by_rule

        base = load_model(self.model, self.trainer.accelerator)

        def write(start: int, images: Tensor) -> None:
            for index, image in enumerate(images.numpy(), start):
                Image.fromarray(image).save(folder / file_name(index))

        with counted(numbers, folder, base.denoiser), on_backbone(base, self.backbone):
            generate_by_rule(
                base, self.sampling, self.file(base), self.parts, self.pair.shots(self.spec.images), self.seeds,
                self.spec, self.trainer, progress, Share(numbers, write), self.expert(),
            )  # fmt: skip

    def expert(self) -> ExpertEncoder | None:
        """Return the expert encoder; None if the routing is not learned."""
        if self.encoder is None:
            return None
        from lorabench.sampling.encoder import ExpertEncoder

        return ExpertEncoder.load(self.encoder)

    def file(self, base: DiffusionModel) -> LoRA | None:
        """Return the merged LoRA; None if the LoRAs are applied separately."""
        from lorabench.merging.merge import MergeEnvironment
        from lorabench.merging.strength import merged_at_strength

        if self.merged is None or (self.strength is not None and self.merge.keeps_parts):
            return None
        if self.strength is None:
            return Merged.load(self.merged).file
        env = MergeEnvironment(base.layers, base, self.seed, self.trainer)
        return merged_at_strength(self.merge, self.read(), self.pair, self.strength, env).file

    def parts(self) -> Parts | None:
        """Return the separate LoRAs at the scales of the merge; None if it does not keep them apart."""
        masks = Merged.load(self.merged).masks if self.merged is not None else None
        return self.merge.parts(self.read(), self.pair.roles, masks, self.strength)

    def read(self) -> list[LoRA]:
        """Return the LoRAs."""
        from lorabench.lora.adapter import LoRA

        return [LoRA.load(path) for path in self.loras]

    def finish(self, folder: Path) -> None:
        check_images(folder, len(self.seeds))


@dataclass(frozen=True)
class Oracle(UnitWork):
    """Write <index>.png: the subject in the style, rendered by the microworld.

    Args:
        pair: The pair.
        count: Number of images.
    """

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
    """Return the file name of an image."""
    return f"{index:02d}.png"


def check_images(folder: Path, count: int) -> None:
    """Check that all images were written.

    Raises:
        RuntimeError: If one is missing.
    """
    missing = [index for index in range(count) if not (folder / file_name(index)).is_file()]
    if missing:
        raise RuntimeError(f"images {missing} were not written")
