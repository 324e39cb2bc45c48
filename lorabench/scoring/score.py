"""Score images from their embeddings and from those of their references, training images and texts."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.scoring.complete import check_rows
from lorabench.scoring.copying import copying_rows, diversity_rows
from lorabench.scoring.embeddings import Embeddings
from lorabench.scoring.factor_rows import factor_rows
from lorabench.scoring.recognition import recognition_rows, recognize
from lorabench.scoring.rows import Embedded, ScoredImage, ScoreRow, similarity_rows
from lorabench.scoring.truth import Truth


def score_rows(
    images: Sequence[ScoredImage],
    backbones: Sequence[Embedded],
    expected: set[tuple[str, str]],
    truth: Truth | None = None,
    factors: Embeddings | None = None,
) -> list[ScoreRow]:
    """Return the rows of all images in their order: of an image all backbones, then the ground truth.

    Args:
        images: The images, in the order of their embeddings.
        backbones: Embeddings by each backbone.
        expected: Metric and backbone of every score, from `expected_scores`.
        truth: Readout that recognizes subjects and styles of the microworld.
        factors: Outputs of the network that reads the factors of the microworld.

    Raises:
        RuntimeError: If a row is missing or there twice.
    """
    apart = [diversity_rows(images, embedded) for embedded in backbones]
    found = recognize(backbones, truth, factors)
    measured = factor_rows(images, factors) if factors else [[] for _ in images]
    rows: list[ScoreRow] = []
    for index, image in enumerate(images):
        for embedded, own in zip(backbones, apart, strict=True):
            rows += similarity_rows(image, index, embedded)
            rows += copying_rows(image, index, embedded)
            rows += own[index]
        if found:
            rows += recognition_rows(image, index, found)
        rows += measured[index]
    check_rows(rows, images, expected)
    return rows
