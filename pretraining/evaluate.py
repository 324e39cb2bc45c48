"""Measure how well images of the base model match their prompts: `python -m pretraining evaluate`.

The prompts have seen words in unseen combinations. The reader of factors (lorabench/scoring/factors.py) reads the
images. It also reads renderings of the same prompts: their share is the ceiling, as the reader errs too. This writes
evaluation.json and the model card's samples and table next to the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.models.files import model_folder
from lorabench.models.load import load
from lorabench.models.model import DiffusionModel
from lorabench.sampling.sampler import decoded, sample_latents
from lorabench.scoring.description import FACTORS, ScorerFiles
from lorabench.scoring.factors import Read, labels, read
from lorabench.scoring.files import MICRO_SCORERS, TRUTH
from lorabench.scoring.load import load_scorer
from pretraining.card import CARD, READOUT, fill
from pretraining.export import check_target
from pretraining.prompts import Asked, choose, seen_combinations

STEPS, GUIDANCE = 25, 3.0  # as in conf/config.yaml
BATCH = 24
FOUND, SHEET_FILE = "evaluation.json", "samples.png"
BY = ("class", "family", "mark")  # shares are also given for each of these
SHEET = 12  # images per row of the sample sheet


def evaluate(folder: Path, progress: Callable[[int], object] = lambda n: None) -> dict[str, Any]:
    """Generate and read all images; return the shares of images that match their prompts.

    Raises:
        UserError: If a file would be replaced that is not that of an export's evaluation.
    """
    check_target(folder, [FOUND, SHEET_FILE])
    model, asked = load(model_folder(folder)), choose(seen_combinations())
    images = generate(model, [each.prompt for each in asked], progress)
    rng = np.random.default_rng(seed_of("evaluation renderings"))
    rendered = np.stack([mw.render(*each.thing(rng)) for each in asked])
    reader = load_scorer(ScorerFiles.of(MICRO_SCORERS / TRUTH / FACTORS))
    own, true = (matches(read(reader.embed(some)[FACTORS]), asked) for some in (images, rendered))
    found = {
        "images": len(asked), "shares": shares(own), "ceiling": shares(true),
        **{f"by {name}": {word: shares(own.iloc[rows]) for word, rows in groups(asked, name).items()} for name in BY},
    }  # fmt: skip
    (folder.parent / FOUND).write_text(json.dumps(found, indent=1) + "\n")
    fill(folder.parent / CARD, f"{READOUT} of {folder.name}", as_markdown(found))
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
        parts.append(decoded(model, sample_latents(model, part, seeds, STEPS, GUIDANCE)).numpy())
        progress(len(part))
    return np.concatenate(parts)


def matches(found: Read, asked: Sequence[Asked]) -> pd.DataFrame:
    """Return for each image and factor whether it is as asked, 1 or 0; NaN if the prompt does not name the factor."""
    wanted = {
        "class": [each.cls for each in asked],
        "family": [each.family or "photo" for each in asked],
        "mark": [each.mark for each in asked],
        "color": [each.color if each.shows_color else "" for each in asked],
        "scene": [each.scene for each in asked],
    }
    return pd.DataFrame({
        name: [float(a == b) if b else math.nan for a, b in zip(labels(found, name), words, strict=True)]
        for name, words in wanted.items()
    })  # fmt: skip


def shares(right: pd.DataFrame) -> dict[str, float]:
    """Return the share of matching images for each factor, over the prompts that name it; "all": for all factors."""
    return {**right.mean().dropna().to_dict(), "all": float(right.min(axis=1).mean())}


def groups(asked: Sequence[Asked], name: str) -> dict[str, list[int]]:
    """Return the numbers of the prompts with each class, family or mark."""
    words = [{"class": each.cls, "family": each.family or "photo", "mark": each.mark}[name] for each in asked]
    return {word: [i for i, own in enumerate(words) if own == word] for word in dict.fromkeys(words)}


def as_markdown(found: Mapping[str, Any]) -> str:
    """Return the tables of the model card."""
    names = ("class", "family", "mark", "color", "scene", "all")
    lines = [f"| % of {found['images']} images | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]

    def line(title: str, values: Mapping[str, float]) -> str:
        return f"| {title} | " + " | ".join(f"{100 * values[n]:.1f}" if n in values else "-" for n in names) + " |"

    lines += [line("as asked", found["shares"]), line("renderings of the same prompts", found["ceiling"])]
    for name in BY:
        lines += [line(word, values) for word, values in found[f"by {name}"].items()]
    return "\n".join(lines) + "\n"


def sheet(images: np.ndarray, asked: Sequence[Asked]) -> np.ndarray:
    """Return images in a grid: one row per class of photographs, then one row per family."""
    kinds = [each.cls if each.scene else each.family for each in asked]
    rows = [np.flatnonzero([kind == other for other in kinds])[:SHEET] for kind in (*mw.CLASSES, *mw.SEEN_FAMILIES)]
    return np.concatenate([np.concatenate(list(images[row]), axis=1) for row in rows if len(row) == SHEET])
