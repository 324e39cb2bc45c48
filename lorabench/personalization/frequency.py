"""Contrastive pairs by band substitution while sampling (CRAFT-LoRA, arXiv 2602.18936, appendix A.1).

With F the orthonormal DCT of each latent channel, a the reference noised to the level of x, and M_low the disk
sqrt(u^2 + v^2) <= cutoff (frequencies as shares of the highest one):

    content image   x <- F^-1( M_low F(a) + (1 - M_low) F(x) )     a: content reference;  the first `share` of the steps
    style image     x <- F^-1( (1 - M_low) F(a) + M_low F(x) )     a: style reference;    the last `share` of the steps

after every step, with a prompt that names both. So the low band of the content, or the high band of the style, is
kept, and the rest follows the prompt. `match_color` gives the latents of a style image the mean and the deviation of
its reference in each channel, because a color palette is in the lowest frequencies, which the mask drops.

The formula of the paper is lost in the text that was read. Its literal form keeps one band of a prediction and no
other, which leaves no image; FBSDiff (arXiv 2408.00998) substitutes bands as here. The mask is hard: a soft one would
change the variance of the noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError, seed_of
from lorabench.config.settings import setting
from lorabench.data.concepts import Reference, Role
from lorabench.data.images import read_image
from lorabench.engine.record import sha256
from lorabench.personalization.training import Environment, Job

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Adapter
    from lorabench.models.model import DiffusionModel

MANIFEST = "pairs.json"


@dataclass(kw_only=True)
class RenderSpec:
    """How pairs are sampled.

    Args:
        steps: Sampling steps.
        guidance: Guidance scale.
        batch: Images per batch.
        cutoff: Highest frequency of the low band.
        share: Share of the steps with a band of the reference.
        match_color: Give style images the channel statistics of their reference.
    """

    steps: int = setting(least=1)
    guidance: float = setting(least=1)
    batch: int = setting(least=1)
    cutoff: float = setting(above=0)
    share: float = setting(above=0, most=1)
    match_color: bool


@dataclass(frozen=True)
class RenderJob(Job):
    """Content images and style images of all pairs of references, as <role>_<content>_<style>.png."""

    stage = "pairs"

    spec: RenderSpec | None = None

    @property
    def own(self) -> RenderSpec:
        assert self.spec is not None
        return self.spec

    @property
    def params(self) -> dict[str, Any]:
        shared = super().params
        return {name: shared[name] for name in ("training", "version", "concept")} | {"render": asdict(self.own)}

    @property
    def steps(self) -> int:
        return 2 * len(self.concept.images) * len(self.concept.styled)

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, Adapter]:
        if env.folder is None:
            raise UserError("contrastive pairs need a folder to be written to")
        entries, done = [], 0
        for role in ("content", "style"):
            for start in range(0, self.steps // 2, self.own.batch):
                made = self.batch(model, role, range(start, min(start + self.own.batch, self.steps // 2)), env)
                entries += made
                done += len(made)
                if env.progress:
                    env.progress(done)
        (env.folder / MANIFEST).write_text(json.dumps(entries, indent=1))
        return {}

    def batch(self, model: DiffusionModel, role: Role, numbers: Sequence[int], env: Environment) -> list[dict]:
        """Sample and write images of one role; returns their entries in the manifest."""
        import torch
        from PIL import Image

        from lorabench.models.autoencoder import pixels
        from lorabench.sampling.sampler import sample_latents

        assert env.folder is not None
        pairs = [divmod(number, len(self.concept.styled)) for number in numbers]
        anchors = [(self.concept.images[i] if role == "content" else self.concept.styled[j]) for i, j in pairs]
        words = [f"a {self.concept.images[i].word}{look(self.concept.styled[j])}" for i, j in pairs]
        seeds = [seed_of("contrast", role, i, j, env.seed) for i, j in pairs]
        latents = model.encode_images(pixels([each.image(model.resolution) for each in anchors]))
        band = Substitution(model, latents, model.initial_noise([seed + 1 for seed in seeds]), role, self.own)
        with torch.no_grad():
            found = sample_latents(model, words, seeds, self.own.steps, self.own.guidance, after=band)
            images = (model.decode(found) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        entries = []
        for image, (i, j), prompt, seed in zip(images, pairs, words, seeds, strict=True):
            name = f"{role}_{i:02d}_{j:02d}.png"
            Image.fromarray(image).save(env.folder / name)
            word = self.concept.images[i].word
            entry = {"file": name, "role": role, "word": word, "prompt": prompt, "seed": seed}
            entries.append({**entry, "cutoff": self.own.cutoff, "sha256": sha256(env.folder / name)})
        return entries

    def learned(self, lora: Adapter) -> int:
        return 0


def look(style: Reference) -> str:
    """Return the words of a caption after the object: " in ink style"."""
    return style.prompt.removeprefix(f"a {style.word}")


class Substitution:
    """Replaces a band of the latents after each sampling step.

    Args:
        anchors: Latents of the references, [n, c, h, w].
        noise: Their noise, the same in all steps.
        role: "content" keeps the low band of the references, "style" the high band.
    """

    def __init__(self, model: DiffusionModel, anchors: Tensor, noise: Tensor, role: Role, spec: RenderSpec):
        self.model, self.anchors, self.noise, self.role, self.spec = model, anchors, noise, role, spec

    def __call__(self, latents: Tensor, step: int, sampler: Any) -> Tensor:
        """Return the latents after a step, counted from 0."""
        done, share = step + 1, self.spec.share * self.spec.steps
        if not (done <= share if self.role == "content" else self.spec.steps - done < share):
            return latents
        anchor = sampler.noised(self.anchors, self.noise, step + 1)
        low, high = (anchor, latents) if self.role == "content" else (latents, anchor)
        mixed = substituted(low, high, self.spec.cutoff)
        if self.role == "style" and self.spec.match_color:
            mixed = matched(mixed, anchor)
        return mixed


def substituted(low: Tensor, high: Tensor, cutoff: float) -> Tensor:
    """Return images with the frequencies up to `cutoff` of one batch and the others of another, [n, c, h, w]."""
    import torch

    height, width = low.shape[-2:]
    rows, columns = dct(height).to(low.device), dct(width).to(low.device)
    u = torch.arange(height, device=low.device)[:, None] / height
    v = torch.arange(width, device=low.device) / width
    mask = ((u.square() + v.square()).sqrt() <= cutoff).float()
    bands = [rows @ each.float() @ columns.mT for each in (low, high)]
    return (rows.mT @ (mask * bands[0] + (1 - mask) * bands[1]) @ columns).to(low.dtype)


def dct(size: int) -> Tensor:
    """Return the orthonormal DCT-II as a matrix [size, size]: row u is the cosine of frequency u."""
    import torch

    n = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(torch.pi * (n + 0.5) * n[:, None] / size) * (2 / size) ** 0.5
    rows[0] /= 2**0.5
    return rows.float()


def matched(images: Tensor, like: Tensor) -> Tensor:
    """Return images with the mean and the deviation of others in each channel."""
    axes = (-2, -1)
    scaled = (images - images.mean(axes, keepdim=True)) / images.std(axes, keepdim=True).clamp(min=1e-6)
    return scaled * like.std(axes, keepdim=True) + like.mean(axes, keepdim=True)


def rendered(folder: Path) -> tuple[tuple[Reference, ...], tuple[Reference, ...]]:
    """Return the content images and the style images that a `RenderJob` wrote."""
    entries = json.loads((folder / MANIFEST).read_text())

    def of(role: str) -> tuple[Reference, ...]:
        return tuple(
            Reference(each["word"], each["prompt"], each["sha256"], partial(read_image, folder / each["file"]))
            for each in entries
            if each["role"] == role
        )

    return of("content"), of("style")
