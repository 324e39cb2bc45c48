"""Copying and diversity, two sides of overfitting: does a LoRA repeat its training images, and itself?

    copy/content, copy/style   cosine of an image with each training image of the role; a table shows the greatest
    diversity                  1 - mean cosine of an image with the other images of its prompt

Both use the content embedding of DINO. An overfitted LoRA wins `dino/content` by repeating a training image, and then
`copy/content` is far above that of the oracle. `copy/style` shows whether an image repeats objects of a style image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorabench.data.concepts import ROLES
from lorabench.scoring.cosine import cosine_matrix
from lorabench.scoring.rows import VERSION, Embedded, ScoredImage, ScoreRow, row

KIND = "dino"  # metric of the backbones that copying is scored by
ROLE = "content"  # their embedding
COPY = {role: f"copy/{role}" for role in ROLES}
DIVERSITY = "diversity"
SAMPLES = "samples"  # the reference of diversity


def copying_rows(item: ScoredImage, index: int, embedded: Embedded) -> list[ScoreRow]:
    """Return one row per training image of the pair.

    Args:
        item: The image.
        index: Position of the image in `embedded`.
        embedded: Embeddings by the backbone.
    """
    found, rows = embedded.images, []
    if not embedded.training:
        return rows
    image = found.rows[ROLE][index : index + 1]
    for role in ROLES:
        shown = {each.sha256: each for concept in item.pair.of(role) for each in concept.images}
        if not shown:
            continue
        vectors = torch.stack([embedded.training[name][ROLE] for name in shown])
        for name, value in zip(shown, cosine_matrix(image, vectors)[0].tolist(), strict=True):
            rows.append(row(item, COPY[role], found.name, role, name[:12], value, f"{VERSION}-{found.version}"))
    return rows


def diversity_rows(items: Sequence[ScoredImage], embedded: Embedded) -> list[list[ScoreRow]]:
    """Return the rows of each image: one, or none if its prompt has no other image."""
    found = embedded.images
    if found.metric != KIND:
        return [[] for _ in items]
    alike = cosine_matrix(found.rows[ROLE], found.rows[ROLE])
    rows: list[list[ScoreRow]] = []
    for index, item in enumerate(items):
        others = [i for i, other in enumerate(items) if i != index and same_prompt(item, other)]
        if others:
            value = 1 - alike[index, others].mean().item()
            version = f"{VERSION}-{found.version}"
            rows.append([row(item, DIVERSITY, found.name, ROLE, SAMPLES, value, version)])
        else:
            rows.append([])
    return rows


def same_prompt(one: ScoredImage, other: ScoredImage) -> bool:
    """Return whether two images are of the same pair and prompt."""
    return one.pair is other.pair and one.keys["prompt"] == other.keys["prompt"]
