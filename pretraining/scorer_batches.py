"""Batches of images that the micro scorers are trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lorabench.data import microworld as mw
from pretraining.scorer_bank import PHOTOS, STYLES, SUBJECTS, ScorerBank


@dataclass
class Batch:
    """A batch of images with their factors.

    Args:
        pixels: Preprocessed images [n, 3, SIZE, SIZE].
        subjects: Subject of each image.
        styles: Style of each image; None for a photograph.
        texts: Caption of each image. Every second one is complete; the others omit details at random.
        subject_ids: Integer labels of the subjects, [n].
        style_ids: Integer labels of the styles, [n].
    """

    pixels: torch.Tensor
    subjects: list[mw.Subject]
    styles: list[mw.Style | None]
    texts: list[str]
    subject_ids: torch.Tensor
    style_ids: torch.Tensor


def grid_batch(bank: ScorerBank, rng: np.random.Generator, blocks: int, rows: int, styled: int, photos: int) -> Batch:
    """Return, from each of `blocks` blocks, `rows` subjects in the same `styled` styles and `photos` photographs.

    Args:
        bank: Images.
        rng: Generator of all choices.
        blocks: Number of blocks.
        rows: Subjects per block.
        styled: Styles per block.
        photos: Photographs per subject.
    """
    places, subject_ids, style_ids = [], [], []
    for b in rng.choice(bank.blocks, blocks, replace=False):
        chosen = rng.choice(SUBJECTS, rows, replace=False)
        styles = rng.choice(STYLES, styled, replace=False)
        for i in chosen:
            for view in [*styles, *(STYLES + rng.choice(PHOTOS, photos, replace=False))]:
                places.append((int(b), int(i), int(view)))
                subject_ids.append(int(b) * SUBJECTS + int(i))
                style_ids.append(int(b) * STYLES + int(view) if view < STYLES else -1)
    images = torch.from_numpy(np.stack([bank.pixels[place] for place in places])).permute(0, 3, 1, 2)
    factors = bank.factors
    subjects = [factors[b].subjects[i] for b, i, _ in places]
    shown_styles = [factors[b].style_of(view) for b, _, view in places]
    poses = [factors[b].poses[i][view] for b, i, view in places]
    return Batch(
        degrade((images.float() / 255 - 0.5) / 0.25, rng),
        subjects,
        shown_styles,
        [mw.caption(subjects[k], shown_styles[k], poses[k], rng if k % 2 else None) for k in range(len(places))],
        torch.tensor(subject_ids),
        torch.tensor(style_ids),
    )


def degrade(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return images with blur on half of them and grain on half of them, as in decoded images of a model."""
    n = len(pixels)
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    kernel = (weights[:, None] * weights[None, :] / 256).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(pixels, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    amount = torch.from_numpy((rng.uniform(0, 1, n) * (rng.random(n) < 0.5)).astype(np.float32)).view(n, 1, 1, 1)
    grain = torch.from_numpy((rng.uniform(0, 0.25, n) * (rng.random(n) < 0.5)).astype(np.float32)).view(n, 1, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, np.float32))
    return torch.lerp(pixels, blurred, amount) + grain * noise
