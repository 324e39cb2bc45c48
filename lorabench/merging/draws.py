"""The random draws of a learned merge: images, noise and timesteps of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorabench.base import seed_of
from lorabench.data.concepts import Concept
from lorabench.data.pairs import Pair
from lorabench.data.weights import draw_weighted
from lorabench.lora.adapter import LoRA
from lorabench.lora.layer import Adapters
from lorabench.merging.step import MergeStep, Noised
from lorabench.models.autoencoder import pixels
from lorabench.models.layer import Layer
from lorabench.models.model import DiffusionModel


class Draws:
    """The random draws of one pair. Its images are encoded once and noised for each step."""

    def __init__(self, model: DiffusionModel, pair: Pair, seed: int, loras: Sequence[LoRA] = ()):
        """Encode the images and prompts of a pair.

        Args:
            model: The model.
            pair: The pair.
            seed: Seed of the draws.
            loras: LoRAs to merge. Their parts for the text encoders are summed, for teachers and merge alike.
        """
        self.model, self.seed, self.roles = model, seed, pair.roles
        self.concepts = [ConceptImages(model, concept, loras) for concept in pair.concepts]
        self.both = model.encode_prompts([pair.prompt], loras)

    def step(self, step: int, batch: int, adapters: Adapters, layers: Mapping[str, Layer]) -> MergeStep:
        """Return a step with `batch` images per concept. Noise and timesteps are the same for all concepts."""
        draw = torch.Generator().manual_seed(seed_of(self.seed, step))
        picks = [draw_weighted(each.weights, batch, draw) for each in self.concepts]
        t = self.model.process.timesteps(batch, draw)
        noise = torch.randn(batch, *self.concepts[0].latents.shape[1:], generator=draw).to(self.model.device)
        images = tuple(each.noised(pick, noise, t) for each, pick in zip(self.concepts, picks, strict=True))
        both = self.both.take([0] * batch)
        return MergeStep(self.model, adapters, layers, self.roles, images, both, noise, t)


class ConceptImages:
    """A concept's training images as latents."""

    def __init__(self, model: DiffusionModel, concept: Concept, loras: Sequence[LoRA]):
        self.model, self.weights = model, [reference.weight for reference in concept.images]
        self.latents = model.encode_images(pixels([reference.image(model.resolution) for reference in concept.images]))
        self.prompts = model.encode_prompts([reference.prompt for reference in concept.images], loras)

    def noised(self, picks: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """Return noised images with their prompts. `picks` are indices of images, [batch]."""
        return Noised(self.model.process.add_noise(self.latents[picks], noise, t), self.prompts.take(picks))
