"""Class images for prior preservation (Ruiz et al., DreamBooth, CVPR 2023, section 3.2).

They show the concept's class as the base model generates it before training. Concepts of a class share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lorabench.base import seed_of
from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.data.concepts import Concept, Reference
from lorabench.data.images import read_image

if TYPE_CHECKING:
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class ClassImages:
    """The class images of a concept.

    Args:
        prompts: Used in turn.
        spec: Sampler, with the number of images.
    """

    prompts: tuple[str, ...]
    spec: GenerateSpec
    seed: int

    @classmethod
    def of(cls, concept: Concept, count: int, spec: GenerateSpec, seed: int) -> ClassImages:
        return cls(class_prompts(concept), replace(spec, images=count, negative=None), seed)

    def params(self) -> dict[str, Any]:
        """Return everything besides the model that changes the images."""
        sampler = {name: value for name, value in self.spec.params().items() if name != "images"}
        return {"prompts": list(self.prompts), "images": self.spec.images, "generate": sampler, "seed": self.seed}

    def references(self, folder: Path) -> list[Reference]:
        """Return the images that `generate` wrote into the folder."""
        return [
            Reference(prompt, prompt, f"{folder.name}/{index}", partial(read_image, folder / f"{index:04d}.png"))
            for index, prompt in enumerate(self.each())
        ]

    def each(self) -> list[str]:
        """Return the prompt of every image."""
        return [self.prompts[index % len(self.prompts)] for index in range(self.spec.images)]

    def generate(
        self, model: DiffusionModel, trainer: TrainerSpec, folder: Path, progress: Callable[[int], None]
    ) -> None:
        from lorabench.sampling.generate import generate

        prompts = self.each()
        seeds = [seed_of("class image", prompt, index, self.seed) for index, prompt in enumerate(prompts)]
        images = generate(model, [], prompts, seeds, self.spec, trainer, progress=progress)
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:04d}.png")


def class_prompts(concept: Concept) -> tuple[str, ...]:
    """Return descriptions of a concept's images without its identifier: "a dog"; "a village in oil painting style"."""
    look = f" in {concept.word}" if concept.role == "style" else ""
    return tuple(dict.fromkeys(f"a {image.word}{look}" for image in concept.images))
