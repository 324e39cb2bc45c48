"""Score images from their embeddings and from those of their references and texts."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.scoring.complete import check_rows
from lorabench.scoring.rows import Embedded, ScoredImage, ScoreRow, similarity_rows, truth_rows
from lorabench.scoring.truth import CONTENT, STYLE, Truth


def score_rows(
    images: Sequence[ScoredImage],
    backbones: Sequence[Embedded],
    expected: set[tuple[str, str]],
    truth: Truth | None = None,
) -> list[ScoreRow]:
    """Return the rows of all images in their order: of an image all backbones, then the ground truth.

    Args:
        expected: Metric and backbone of every score, from `expected_scores`.

    Raises:
        RuntimeError: If a row is missing or there twice.
    """
    by_name = {each.images.name: each.images.rows for each in backbones}
    known = truth is not None and {CONTENT[0], STYLE[0]} <= by_name.keys()
    read = truth.read(by_name) if truth is not None and known else {}
    rows: list[ScoreRow] = []
    for index, image in enumerate(images):
        for embedded in backbones:
            rows += similarity_rows(image, index, embedded)
        if truth is not None and known:
            rows += truth_rows(image, {factor: names[index] for factor, names in read.items()}, truth)
    check_rows(rows, images, expected)
    return rows
