"""The training images of a LoRA as latents: crops and mirror images, encoded once, with their crop coordinates.

SDXL is conditioned on the size of the original image and on the corner of the crop (Podell et al., arXiv 2307.01952,
section 2.2), so that it does not learn to cut off heads from crops. As in diffusers' scripts, the shorter side of an
image is resized to the model's resolution, and crops are cut from the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor, randint
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from lorabench.base import seed_of
from lorabench.data.concepts import Reference, square
from lorabench.data.weights import draw_weighted
from lorabench.models.autoencoder import pixels
from lorabench.models.model import DiffusionModel


class Batch(NamedTuple):
    """Images of one forward pass, before noise is added.

    Attributes:
        latents, noise: [n, c, h, w].
        t: Timesteps [n].
        prompts: n prompts.
        crops: [n, 6], see `DiffusionModel.with_crops`.
    """

    latents: Tensor
    noise: Tensor
    t: Tensor
    prompts: list[str]
    crops: Tensor

    def join(self, other: Batch) -> Batch:
        """Append another batch to this one."""
        latents, noise, t = (torch.cat(pair) for pair in zip(self[:3], other[:3], strict=True))
        return Batch(latents, noise, t, self.prompts + other.prompts, torch.cat([self.crops, other.crops]))


@dataclass(frozen=True)
class Views:
    """All views of some images, one image after the other in each pass; the views of an image are equally likely.

    Args:
        latents: Latents [n, c, h, w].
        prompts: Prompt of each view.
        crops: [n, 6], see `DiffusionModel.with_crops`.
        weights: Weight of each image.
        law: Distribution of the noise levels, see `NoiseProcess.timesteps`.
    """

    latents: Tensor
    prompts: list[str]
    crops: Tensor
    weights: Sequence[int]
    law: str = "uniform"

    def draw(self, model: DiffusionModel, count: int, draw: torch.Generator) -> Batch:
        """Return `count` views with replacement, with a noise and a timestep for each."""
        picks = draw_weighted(self.weights, count, draw, len(self.latents) // len(self.weights))
        t = model.process.timesteps(count, draw, self.law)
        noise = torch.randn(count, *self.latents.shape[1:], generator=draw).to(model.device)
        return Batch(self.latents[picks], noise, t, [self.prompts[pick] for pick in picks], self.crops[picks])


class Cut(NamedTuple):
    """A crop of an image.

    Attributes:
        image: The crop.
        crop: Its coordinates, see `DiffusionModel.with_crops`.
    """

    image: Image.Image
    crop: tuple[int, ...]


def views(
    model: DiffusionModel, references: Sequence[Reference], flips: bool, crops: int, seed: int, law: str = "uniform"
) -> Views:
    """Return the views of images as latents.

    Args:
        model: Model whose autoencoder encodes them.
        references: Images with their prompts and weights.
        flips: Add mirrored images.
        crops: Number of random crops of each image, seeded by `seed`; 1: the center; 0: the center, with the crop
            coordinates of a whole image.
        seed: Seed of the crops.
        law: Distribution of timesteps, see `NoiseProcess.timesteps`.
    """
    edge, loaded = model.resolution, [reference.load() for reference in references]
    if crops:
        cuts = [
            cut
            for mirrored in (False, True)[: 1 + flips]
            for crop in range(crops)
            for index, image in enumerate(loaded)
            for cut in [cut_at(image, edge, mirrored, seed_of(seed, "crop", index, crop) if crops > 1 else None)]
        ]
        images, coordinates = [cut.image for cut in cuts], [cut.crop for cut in cuts]
    else:
        whole = [square(image, edge) for image in loaded]
        images = whole + [ImageOps.mirror(image) for image in whole if flips]
        coordinates = [(edge, edge, 0, 0, edge, edge)] * len(images)
    count = len(references)
    parts = [model.encode_images(pixels(images[start : start + count])) for start in range(0, len(images), count)]
    prompts = [reference.prompt for reference in references] * len(parts)
    weights = [reference.weight for reference in references]
    return Views(torch.cat(parts), prompts, torch.tensor(coordinates, device=model.device), weights, law)


def cut_at(image: Image.Image, edge: int, mirrored: bool, seed: int | None) -> Cut:
    """Cut a square from the image with its shorter side resized to `edge`: random, or the center without a seed."""
    resizing: Any = resize  # torchvision's types do not include PIL images
    small: Image.Image = resizing(image, edge, InterpolationMode.LANCZOS)
    if mirrored:
        small = ImageOps.mirror(small)
    spare = (small.height - edge, small.width - edge)
    if seed is None:
        top, left = (round(rest / 2) for rest in spare)
    else:
        draw = torch.Generator().manual_seed(seed)
        top, left = (int(randint(rest + 1, (), generator=draw)) for rest in spare)
    crop = small.crop((left, top, left + edge, top + edge))
    return Cut(crop, (image.height, image.width, top, left, edge, edge))
