"""Rows of scores.parquet: one row per image, metric, backbone and reference.

Any paper's averaging can be computed from the rows later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lorabench.base import UserError
from lorabench.data.pairs import Pair, Scene
from lorabench.scoring.clip import Clip
from lorabench.scoring.cosine import cosine_matrix
from lorabench.scoring.preprocess import to_uint8
from lorabench.scoring.references import References
from lorabench.scoring.scorer import Scorer
from lorabench.scoring.truth import CONTENT, STYLE, Truth

VERSION = "1"  # of the rows' meaning: a change here makes old and new numbers incomparable
KEYS = ("dataset", "world", "content", "style", "prompt", "seed", "image", "method", "ablation", "model")
COLUMNS = (*KEYS, "metric", "backbone", "role", "reference", "value", "version")
UNIQUE = (*KEYS, "metric", "backbone", "role", "reference")

ScoreRow = dict[str, Any]


@dataclass(frozen=True)
class ScoredImage:
    """An image to score: decoded (uint8 [H, W, 3]) or the path of one, its pair, and the other KEYS of its rows.

    text: the plain words of its scene, for CLIP-T.
    keys: those left out (method, say, when a store holds what a method drew) are left out of the rows too; "prompt",
        what the image was drawn from, is always there.
    """

    image: np.ndarray | Path
    pair: Pair
    text: str
    keys: Mapping[str, Any]

    def known(self) -> ScoreRow:
        """The KEYS that this item has, in their order."""
        known = {"content": self.pair.content_name, "style": self.pair.style_name, **self.keys}
        return {key: known[key] for key in KEYS if key in known}

    def load(self) -> np.ndarray:
        if isinstance(self.image, np.ndarray):
            return to_uint8(self.image)
        try:
            with Image.open(self.image) as picture:
                return to_uint8(picture)
        except OSError as error:
            raise UserError(
                f"cannot read the image {self.image} ({error}); delete it and run the command again"
            ) from error


def similarity_rows(
    item: ScoredImage, scorer: Scorer, image: Mapping[str, torch.Tensor], references: References
) -> list[ScoreRow]:
    """Rows of one image and one scorer; `image` is its unit row [1, d] by role."""
    rows = []
    version = f"{VERSION}-{scorer.version}"
    for role in scorer.roles:
        for concept in item.pair.of(role):
            values = cosine_matrix(image[role], references.concept(scorer, concept)[role])[0].tolist()
            for reference, value in zip(concept.references, values, strict=True):
                name = reference.sha256[:12]
                rows.append(row(item, f"{scorer.metric}/{role}", scorer.name, role, name, value, version))
    if isinstance(scorer, Clip):
        for metric, role, text in (
            (scorer.text_metric, "text", item.text),
            (f"{scorer.text_metric}/prompt", "prompt", item.keys["prompt"]),
        ):
            value = cosine_matrix(image["content"], references.text(scorer, text)).item()
            rows.append(row(item, metric, scorer.name, role, text, value, version))
    return rows


def truth_rows(item: ScoredImage, read: Mapping[str, str], truth: Truth) -> list[ScoreRow]:
    """1 or 0 for class, subject, family and style, where the pair is a single one of the microworld, else nothing."""
    rows = []
    if not item.pair.is_single:
        return rows
    content, style = item.pair.concepts
    version = f"{VERSION}-{truth.version}"
    if content.factors is not None:
        expected = {"class_acc": ("class", content.factors.cls), "subject_r1": ("subject", content.name)}
        for metric, (what, right) in expected.items():
            rows.append(row(item, metric, CONTENT[0], "content", right, float(read[what] == right), version))
    if style.factors is not None:
        expected = {"family_acc": ("family", style.factors.family), "style_r1": ("style", style.name)}
        for metric, (what, right) in expected.items():
            rows.append(row(item, metric, STYLE[0], "style", right, float(read[what] == right), version))
    return rows


def row(
    item: ScoredImage, metric: str, backbone: str, role: str, reference: str, value: float, version: str
) -> ScoreRow:
    """One line of scores.parquet, in the order of COLUMNS."""
    return {
        **item.known(),
        "metric": metric, "backbone": backbone, "role": role, "reference": reference,
        "value": float(value), "version": version,
    }  # fmt: skip


def items_of(
    images: Sequence[np.ndarray | Path],
    pair: Pair,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    keys: Mapping[str, Any],
) -> list[ScoredImage]:
    """The images of one pair; scenes and seeds [n] belong to images [n] (decoded, or paths).

    keys: the KEYS all have in common, of dataset, world, method, ablation, model.
    """
    return [
        ScoredImage(image, pair, scene.text, {**keys, "prompt": scene.prompt, "seed": seed, "image": i})
        for i, (image, scene, seed) in enumerate(zip(images, scenes, seeds, strict=True))
    ]
