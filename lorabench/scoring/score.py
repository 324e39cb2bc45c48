"""Score images from their embeddings and from those of their references, training images and texts."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.scoring.complete import check_rows
from lorabench.scoring.copying import copying_rows, diversity_rows
from lorabench.scoring.factor_rows import factor_rows
from lorabench.scoring.factors import INPUTS, FactorReader
from lorabench.scoring.rows import Embedded, ScoredImage, ScoreRow, recognition_rows, similarity_rows
from lorabench.scoring.truth import CONTENT, STYLE, Truth


def score_rows(
    images: Sequence[ScoredImage],
    backbones: Sequence[Embedded],
    expected: set[tuple[str, str]],
    truth: Truth | None = None,
    reader: FactorReader | None = None,
) -> list[ScoreRow]:
    """Return the rows of all images in their order: of an image all backbones, then the ground truth.

    Args:
        images: The images, in the order of their embeddings.
        backbones: Embeddings by each backbone.
        expected: Metric and backbone of every score, from `expected_scores`.
        truth: Readout that recognizes subjects and styles of the microworld.
        reader: Networks that read the factors of the microworld.

    Raises:
        RuntimeError: If a row is missing or there twice.
    """
    by_name = {each.images.name: each.images.rows for each in backbones}
    recognizes = truth is not None and {CONTENT[0], STYLE[0]} <= by_name.keys()
    read = truth.read(by_name) if truth is not None and recognizes else {}
    apart = [diversity_rows(images, embedded) for embedded in backbones]
    measured = reader is not None and {name for name, _ in INPUTS} <= by_name.keys()
    factors = factor_rows(images, by_name, reader) if reader is not None and measured else [[] for _ in images]
    rows: list[ScoreRow] = []
    for index, image in enumerate(images):
        for embedded, own in zip(backbones, apart, strict=True):
            rows += similarity_rows(image, index, embedded)
            rows += copying_rows(image, index, embedded)
            rows += own[index]
        if truth is not None and recognizes:
            rows += recognition_rows(image, {factor: names[index] for factor, names in read.items()}, truth)
        rows += factors[index]
    check_rows(rows, images, expected)
    return rows
