"""Rows of the scores that are read in the world's own factors (scoring/factors.py).

truth/content   1 - distance of the subject read from the image to the true one, in [0, 1]
truth/style     the same for the style
ground_acc      1 if the ground of a photograph is the one that the prompt asks for
"""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.data import microworld as mw
from lorabench.data.microworld.captions import PLACE
from lorabench.scoring.description import FACTORS
from lorabench.scoring.embeddings import Embeddings
from lorabench.scoring.factors import content_distances, labels, read, style_distances
from lorabench.scoring.rows import VERSION, ScoredImage, ScoreRow, row

BACKBONE = "factors@micro"
CONTENT, STYLE, GROUND = "truth/content", "truth/style", "ground_acc"


def factor_rows(items: Sequence[ScoredImage], outputs: Embeddings) -> list[list[ScoreRow]]:
    """Return the rows of each image; none of pairs that are not single ones of the microworld.

    Args:
        items: The images.
        outputs: Outputs of the network that reads the factors, in the order of the images.
    """
    found = read(outputs.rows[FACTORS])
    grounds = labels(found, "scene")
    version = f"{VERSION}-{outputs.version}"
    distances: dict[tuple[str, mw.Subject | mw.Style], list[float]] = {}
    rows: list[list[ScoreRow]] = []
    for index, item in enumerate(items):
        own: list[ScoreRow] = []
        if item.pair.is_single:
            for concept, metric, distance in zip(
                item.pair.concepts, (CONTENT, STYLE), (content_distances, style_distances), strict=True
            ):
                if concept.factors is not None:
                    key = (metric, concept.factors)
                    if key not in distances:
                        distances[key] = distance(found, concept.factors).tolist()
                    value = 1 - distances[key][index]
                    own.append(row(item, metric, BACKBONE, concept.role, concept.name, value, version))
        if asked := ground_of(item.context):
            value = float(grounds[index] == asked)
            own.append(row(item, GROUND, BACKBONE, "content", asked, value, version))
        rows.append(own)
    return rows


def ground_of(context: str) -> str | None:
    """Return the ground that a context of the microworld asks for.

    >>> ground_of("a {} on the beach"), ground_of("a {} in a jungle")
    ('beach', None)
    """
    return next((name for name, place in PLACE.items() if context == f"a {{}} {place}"), None)
