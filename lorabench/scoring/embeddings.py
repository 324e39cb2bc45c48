"""Embeddings of images and texts by one backbone: computed once, then shared by all scores that need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorabench.base import UserError
from lorabench.data.concepts import Reference
from lorabench.scoring.clip import Clip
from lorabench.scoring.preprocess import to_uint8
from lorabench.scoring.scorer import Scorer

FILE = "embeddings.safetensors"
TEXT = "text"  # in place of a role


@dataclass(frozen=True)
class Embeddings:
    """L2-normalized embeddings, float32 on the CPU.

    Args:
        name: Name of the backbone with its weights, "dino@micro".
        metric: Name of the metric between images, without the role.
        text_metric: Name of the metric between an image and a text; "" if the backbone embeds no text.
        version: Short hash of description and weights.
        rows: [n, d] by role; by "text" for texts.
    """

    name: str
    metric: str
    text_metric: str
    version: str
    rows: Mapping[str, Tensor]

    @classmethod
    def by(cls, scorer: Scorer, rows: Mapping[str, Tensor]) -> Embeddings:
        """Return the embeddings of a backbone."""
        text_metric = scorer.text_metric if isinstance(scorer, Clip) else ""
        return cls(scorer.name, scorer.metric, text_metric, scorer.version, rows)

    def save(self, folder: Path) -> None:
        """Write the embeddings to a file."""
        about = {name: getattr(self, name) for name in ("name", "metric", "text_metric", "version")}
        save_file({role: rows.contiguous() for role, rows in self.rows.items()}, folder / FILE, about)

    @classmethod
    def load(cls, folder: Path) -> Embeddings:
        """Read embeddings from a file."""
        with safe_open(folder / FILE, "pt") as file:
            return cls(**file.metadata(), rows={role: file.get_tensor(role) for role in file.keys()})  # noqa: SIM118


def embed_images(
    images: Sequence[np.ndarray | Path | Reference],
    scorers: Sequence[Scorer],
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Embeddings]:
    """Embed images by several backbones.

    Each image is decoded once, and resized once for all backbones that want the same size.

    Args:
        batch: Images that go through a network together. It changes the last digits.
        progress: Called with the number of images done so far.

    Returns:
        One entry per backbone, its rows in the order of the images.

    Raises:
        UserError: If an image file cannot be read.
    """
    parts: list[dict[str, list[Tensor]]] = [{role: [] for role in scorer.roles} for scorer in scorers]
    for start in range(0, len(images), batch):
        pictures = [decoded(image) for image in images[start : start + batch]]
        cuts: dict[tuple, Tensor] = {}
        for scorer, found in zip(scorers, parts, strict=True):
            if (geometry := scorer.preprocess.geometry) not in cuts:
                cuts[geometry] = scorer.preprocess.cut(pictures)
            for role, rows in scorer.embed_cut(cuts[geometry]).items():
                found[role].append(rows)
        progress(start + len(pictures))
    joined = [{role: torch.cat(rows) for role, rows in found.items()} for found in parts]
    return [Embeddings.by(scorer, rows) for scorer, rows in zip(scorers, joined, strict=True)]


def embed_texts(texts: Sequence[str], scorer: Scorer) -> Embeddings:
    """Embed texts one by one, so that a row does not depend on the other texts."""
    if not isinstance(scorer, Clip):
        raise TypeError(f"{scorer.name} embeds no text")
    return Embeddings.by(scorer, {TEXT: torch.cat([scorer.embed_text([text]) for text in texts])})


def decoded(image: np.ndarray | Path | Reference) -> np.ndarray:
    """Return an image as uint8 [H, W, 3]."""
    if isinstance(image, Reference):
        return to_uint8(image.load())
    if isinstance(image, np.ndarray):
        return to_uint8(image)
    try:
        with Image.open(image) as opened:
            return to_uint8(opened)
    except OSError as error:
        raise UserError(f"cannot read the image {image} ({error}); delete it and run the command again") from error
