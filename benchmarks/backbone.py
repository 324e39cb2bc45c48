"""Measure what a rank-limited backbone still draws of what prompts ask for; see docs/craft.md.

python -m benchmarks.backbone --settings steps=200 "steps=400 lr=3e-3" basis_init=bottom_svd pairs=rendered

A backbone with each of the settings (of `method.backbone`, and `pairs`) is trained on the development names of the
microworld and compared with the plain model. Images are sampled of prompts such as "a mug in ink style", with the same
noise for all. No subject or style of the benchmark is seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.measure import markdown
from lorabench.base import seed_of
from lorabench.config.schemas import TrainerSpec
from lorabench.data import microworld as mw
from lorabench.data.concepts import Reference
from lorabench.data.microworld_pairs import reference, render
from lorabench.lora.adapter import Adapter
from lorabench.lora.layer import linear_at
from lorabench.merging.method import load
from lorabench.models.files import MICRO
from lorabench.models.model import DiffusionModel
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.backbone import backbone_job
from lorabench.personalization.dreambooth import denoised, weighted_mse
from lorabench.personalization.training import BACKBONE, Environment
from lorabench.personalization.views import views
from lorabench.sampling.sampler import decoded, sample_latents
from lorabench.scoring.load import load_scorers
from lorabench.scoring.truth import load_truth

STEPS, GUIDANCE, BATCH, SEED = 25, 3.0, 16, 0
PLAIN = "plain model"


def asked(count: int) -> list[tuple[str, str]]:
    """Return combinations of a class and a family that the base model knows, in a random order."""
    every = [(cls, family) for cls in mw.CLASSES for family in mw.SEEN_FAMILIES]
    order = np.random.default_rng(seed_of("benchmark backbone")).permutation(len(every))
    return [every[k] for k in order[:count]]


def shown(cls: str, family: str) -> Reference:
    """Return an image of a random individual in a random style, which no training has seen."""
    return reference(cls, f"a {cls} in {family} style", partial(draw, cls, family), f"unseen {cls} {family}", 0)


def draw(cls: str, family: str) -> Image.Image:
    rng = np.random.default_rng(seed_of("unseen", cls, family))
    return render(mw.sample_subject(rng, cls, True), mw.sample_style(rng, family, True), seed_of("pose", cls, family))


class Check:
    """The measurements of one model on fixed prompts, images, noise and timesteps."""

    def __init__(self, model: DiffusionModel, combinations: Sequence[tuple[str, str]]):
        self.model, self.combinations = model, combinations
        self.scorers = load_scorers()
        self.truth = load_truth(self.scorers)
        self.unseen = views(model, [shown(*each) for each in combinations], False, 0, SEED)

    def __call__(self, backbone: Adapter | None) -> list[float]:
        """Return the removed share of the weights, the loss on unseen images, and recognized classes and families."""
        with self.model.changed(backbone):
            loss, images = self.loss(), self.images()
        read = self.truth.read({scorer.name: scorer.embed(images) for scorer in self.scorers})
        right = [
            np.mean([found == want for found, want in zip(read[kind], wanted, strict=True)])
            for kind, wanted in zip(("class", "family"), zip(*self.combinations, strict=True), strict=True)
        ]
        return [self.removed(backbone), loss, *map(float, right)]

    def removed(self, backbone: Adapter | None) -> float:
        """Return the mean over layers of |Q Q^T W|^2 / |W|^2."""
        if backbone is None:
            return 0.0
        weights = {name: linear_at(self.model.denoiser, name).weight for name in backbone}
        shares = [
            (each.up @ each.down).square().sum() / weights[name].square().sum() for name, each in backbone.items()
        ]
        return float(torch.stack(shares).mean())

    @torch.no_grad()
    def loss(self) -> float:
        draw = torch.Generator().manual_seed(SEED)
        batches = [self.unseen.draw(self.model, BATCH, draw) for _ in range(16)]
        losses = [
            weighted_mse(*denoised(self.model, each, self.model.encode_prompts(each.prompts)), None) for each in batches
        ]
        return float(torch.stack(losses).mean())

    def images(self) -> np.ndarray:
        prompts = [f"a {cls} in {family} style" for cls, family in self.combinations]
        parts = []
        for at in range(0, len(prompts), BATCH):
            shown = prompts[at : at + BATCH]
            latents = sample_latents(self.model, shown, range(at, at + len(shown)), STEPS, GUIDANCE)
            parts.append(decoded(self.model, latents))
        return torch.cat(parts).numpy()


def trained(model: DiffusionModel, settings: str) -> Adapter:
    """Return the backbone of the preset with changed settings, such as "steps=400 lr=3e-3" or "pairs=rendered"."""
    preset: Any = load("craft").training
    changes: Any = OmegaConf.to_container(OmegaConf.from_dotlist(settings.split()))
    pairs = changes.pop("pairs", preset.pairs)
    job = backbone_job(replace(preset.backbone, **changes), preset.render, pairs, None)
    with TemporaryDirectory() as folder:
        trainer = TrainerSpec(accelerator="cpu", precision="32-true", workers=0, threads=1)
        env = Environment(SEED, trainer, folder=Path(folder), needed=[Path(folder)])
        for each in job.needs:
            each.run(model, env)
        return job.run(model, env)[BACKBONE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["steps=200"])
    parser.add_argument("--images", type=int, default=96)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = SDXL.load(MICRO)
    check = Check(model, asked(given.images))
    rows = []
    for settings in (PLAIN, *given.settings):
        start = perf_counter()
        backbone = None if settings == PLAIN else trained(model, settings)
        spent = perf_counter() - start
        removed, loss, cls, family = check(backbone)
        rows.append([settings, f"{removed:.3f}", f"{loss:.4f}", f"{cls:.2f}", f"{family:.2f}", f"{spent:.0f}"])
        print(rows[-1], flush=True)
    print(markdown(["settings", "removed", "loss on unseen images", "class", "family", "s to train"], rows))


if __name__ == "__main__":
    main()
