"""Examples of the world's factors: images with their labels and numbers, to train and to measure the reader of factors.

Examples are images of the bank from 136,000 on and, since the bank has no unseen family and many photographs, as many
drawings in all families. They show no held-out or development subject or style. Drawings are rendered once and kept in
the work folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.scoring import factors
from lorabench.scoring.factors import FAMILIES, LABELS, NUMBERS
from pretraining import bank
from pretraining.scorer_batches import degrade

BLOCK = bank.SHARD  # examples
OF_BANK, DRAWN = 28, 12  # blocks from the bank, and of drawings in all families
KINDS = (*mw.FAMILIES, *mw.UNSEEN_FAMILIES)  # families of drawings in turn; the bank lacks the unseen ones
Thing = tuple[mw.Subject, mw.Style | None, mw.Pose]


def example(number: int) -> Thing:
    """Return the factors of an example."""
    if number < OF_BANK * BLOCK:
        return bank.factors_of(bank.DEVELOPMENT_FROM + number)[:3]
    i = number - OF_BANK * BLOCK
    rng = np.random.default_rng(seed_of("factor reader", mw.VERSION, i))
    subject, pose = mw.sample_subject(rng, development=True), mw.sample_pose(rng)
    return subject, mw.sample_style(rng, KINDS[i % len(KINDS)], development=True), pose


def images(block: int, work: Path) -> np.ndarray:
    """Return the examples of a block, uint8 [BLOCK, 64, 64, 3], from the work folder if they exist."""
    if block < OF_BANK:
        shard = bank.DEVELOPMENT_FROM // BLOCK + block
        bank.render_shard(work / "bank", shard)
        return np.load(work / "bank" / f"{shard:04d}.npy", mmap_mode="r")
    path = work / "factors" / f"{block}.npy"
    if not path.exists():
        bank.save(path, np.stack([mw.render(*example(block * BLOCK + k)) for k in range(BLOCK)]))
    return np.load(path, mmap_mode="r")


def targets(things: Sequence[Thing]) -> dict[str, Tensor]:
    """Return labels [n] of factors in LABELS (-1: not present) and values [n, k] of numbers (NaN: not present)."""
    rows: dict[str, list] = {name: [] for name in (*LABELS, *NUMBERS)}
    for subject, style, pose in things:
        rows["class"].append(mw.CLASSES.index(subject.cls))
        rows["mark"].append(LABELS["mark"].index(subject.mark))
        rows["color"].append(LABELS["color"].index(subject.body.name))
        rows["scene"].append(-1 if style else mw.SCENES.index(pose.scene))
        rows["family"].append(FAMILIES.index(style.family if style else FAMILIES[-1]))
        unknown = {name: [math.nan] * NUMBERS[name] for name in factors.STYLE}
        for name, value in (
            factors.subject_values(subject) | (factors.style_values(style) if style else unknown)
        ).items():
            rows[name].append(value)
    return {name: torch.tensor(row, dtype=None if name in LABELS else torch.float32) for name, row in rows.items()}


def degraded(pictures: np.ndarray, seed: int = 0) -> np.ndarray:
    """Blur half of some images and add grain to half of them; uint8 [n, 64, 64, 3]."""
    pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    pixels = degrade(pixels, np.random.default_rng(seed)) * 0.25 + 0.5
    return (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
