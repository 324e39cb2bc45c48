"""Rows of scores.parquet: one row per image, metric, backbone and reference.

Any paper's averaging can be computed from the rows later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Scene
from lorabench.scoring.cosine import cosine_matrix
from lorabench.scoring.embeddings import Embeddings

VERSION = "1"  # meaning of the rows; change it if old and new values are not comparable
KEYS = ("dataset", "world", "content", "style", "use", "prompt", "seed", "image", "method", "ablation", "model")
COLUMNS = (*KEYS, "metric", "backbone", "role", "reference", "value", "version")
UNIQUE = (*KEYS, "metric", "backbone", "role", "reference")

ScoreRow = dict[str, Any]


@dataclass(frozen=True)
class ScoredImage:
    """An image to score: its pair, and the other KEYS of its rows.

    Args:
        text: Plain words of its scene, for CLIP-T.
        keys: Values of KEYS. A key that is missing here is missing in the rows; "prompt" is required.
        context: The scene for any subject, "a {} in the snow"; "" without.
    """

    pair: Pair
    text: str
    keys: Mapping[str, Any]
    context: str = ""

    def known(self) -> ScoreRow:
        """Return the KEYS that this image has, in their order."""
        known = {"content": self.pair.content_name, "style": self.pair.style_name, **self.keys}
        return {key: known[key] for key in KEYS if key in known}


@dataclass(frozen=True)
class Embedded:
    """Everything that one backbone's scores of some images are computed from.

    Args:
        images: In the order of the images.
        references: By role, of each reference by its sha256.
        texts: By text; empty if the backbone embeds no text.
        training: By role, of each training image by its sha256; empty if copying is not scored by this backbone.
    """

    images: Embeddings
    references: Mapping[str, Mapping[str, torch.Tensor]]
    texts: Mapping[str, torch.Tensor]
    training: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)


def similarity_rows(item: ScoredImage, index: int, embedded: Embedded) -> list[ScoreRow]:
    """Return the rows of one image and one backbone.

    Args:
        item: The image.
        index: Position of the image in `embedded`.
        embedded: Embeddings by the backbone.
    """
    rows, found = [], embedded.images
    version = f"{VERSION}-{found.version}"
    for role in ROLES:
        if role not in found.rows:
            continue
        image = found.rows[role][index : index + 1]
        for concept in item.pair.of(role):
            vectors = torch.stack([embedded.references[each.sha256][role] for each in concept.references])
            values = cosine_matrix(image, vectors)[0].tolist()
            for reference, value in zip(concept.references, values, strict=True):
                name = reference.sha256[:12]
                rows.append(row(item, f"{found.metric}/{role}", found.name, role, name, value, version))
    if found.text_metric:
        image = found.rows["content"][index : index + 1]
        for metric, role, text in (
            (found.text_metric, "text", item.text),
            (f"{found.text_metric}/prompt", "prompt", item.keys["prompt"]),
        ):
            value = cosine_matrix(image, embedded.texts[text][None]).item()
            rows.append(row(item, metric, found.name, role, text, value, version))
    return rows


def row(
    item: ScoredImage, metric: str, backbone: str, role: str, reference: str, value: float, version: str
) -> ScoreRow:
    """Return one row of scores.parquet, with the keys in the order of COLUMNS."""
    return {
        **item.known(),
        "metric": metric, "backbone": backbone, "role": role, "reference": reference,
        "value": float(value), "version": version,
    }  # fmt: skip


def images_of(pair: Pair, scenes: Sequence[Scene], seeds: Sequence[int], keys: Mapping[str, Any]) -> list[ScoredImage]:
    """Return the images of one pair; scenes and seeds have one entry per image.

    Args:
        keys: The KEYS that all images share, of dataset, world, method, ablation, model.
    """
    return [
        ScoredImage(pair, scene.text, {**keys, "prompt": scene.prompt, "seed": seed, "image": index}, scene.context)
        for index, (scene, seed) in enumerate(zip(scenes, seeds, strict=True))
    ]
