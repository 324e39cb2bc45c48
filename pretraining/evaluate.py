"""Measure how well images of the base model match their prompts: `python -m pretraining evaluate`.

The prompts have seen words in unseen combinations. The networks of lorabench/scoring/factors.py read the images; their
own errors are in truth/factors.json. This writes evaluation.json and the model card's samples next to the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.models.files import model_folder
from lorabench.models.load import load
from lorabench.models.model import DiffusionModel
from lorabench.sampling.sampler import sample
from lorabench.scoring.factors import labels, load_factors
from lorabench.scoring.load import load_scorers
from pretraining.export import check_target
from pretraining.prompts import Asked, choose, seen_combinations

STEPS, GUIDANCE = 25, 3.0  # as in conf/config.yaml
BATCH = 24
FOUND, SHEET_FILE = "evaluation.json", "samples.png"
SHEET = 12  # images per row of the sample sheet


def evaluate(folder: Path, progress: Callable[[int], object] = lambda n: None) -> dict[str, float]:
    """Generate and read all images; return the shares of images that match their prompts.

    Raises:
        UserError: If a file would be replaced that is not that of an export's evaluation.
    """
    check_target(folder, [FOUND, SHEET_FILE])
    asked = choose(seen_combinations())
    images = generate(load(model_folder(folder)), [each.prompt for each in asked], progress)
    scorers = load_scorers()
    read = load_factors(scorers).read({scorer.name: scorer.embed(images) for scorer in scorers})
    found = {"images": len(asked), **shares(read, asked)}
    (folder.parent / FOUND).write_text(json.dumps(found, indent=1) + "\n")
    Image.fromarray(sheet(images, asked)).save(folder.parent / SHEET_FILE)
    return found


def generate(
    model: DiffusionModel, prompts: Sequence[str], progress: Callable[[int], object] = lambda n: None
) -> np.ndarray:
    """Generate one image per prompt, uint8 [n, 64, 64, 3]. Its noise depends on its prompt and number."""
    parts = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        seeds = [seed_of("evaluate", text, start + k) for k, text in enumerate(part)]
        parts.append(sample(model, part, seeds, STEPS, GUIDANCE).numpy())
        progress(len(part))
    return np.concatenate(parts)


def shares(read: Mapping[str, Tensor], asked: Sequence[Asked]) -> dict[str, float]:
    """Return the share of matching images for each factor, over the prompts that name it; "all": for all factors."""
    wanted = {
        "class": [each.cls for each in asked],
        "family": [each.family or "photo" for each in asked],
        "mark": [each.mark for each in asked],
        "color": [each.color for each in asked],
        "scene": [each.scene for each in asked],
    }
    found, right = {}, np.ones(len(asked), bool)
    for name, words in wanted.items():
        named = np.array([bool(word) for word in words])
        hit = np.array([a == b for a, b in zip(labels(read, name), words, strict=True)])
        found[name] = float(hit[named].mean())
        right &= hit | ~named
    return {**found, "all": float(right.mean())}


def sheet(images: np.ndarray, asked: Sequence[Asked]) -> np.ndarray:
    """Return images in a grid: one row per class of photographs, then one row per family."""
    kinds = [each.cls if each.scene else each.family for each in asked]
    rows = [np.flatnonzero([kind == other for other in kinds])[:SHEET] for kind in (*mw.CLASSES, *mw.SEEN_FAMILIES)]
    return np.concatenate([np.concatenate(list(images[row]), axis=1) for row in rows if len(row) == SHEET])
