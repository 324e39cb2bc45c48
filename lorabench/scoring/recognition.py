"""Which class, subject, family and style do images of the microworld show?

A class or family is the most likely label. A subject or style is the most likely of the held-out ones, or of the
development names if it is one of them, by the factors that are read (factors.py) and by the prototypes of DINO or CSD
(truth.py), as independent witnesses:

    log p(subject | image) = log p(its factors | image) + cos(image, prototype) / TEMPERATURE + constant

TEMPERATURE is that of the contrast which DINO and CSD were trained with. Without a reader of factors, the nearest
prototype is recognized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lorabench.data.concepts import ROLES, Role
from lorabench.scoring.cosine import cosine_matrix
from lorabench.scoring.description import FACTORS
from lorabench.scoring.embeddings import Embeddings
from lorabench.scoring.factors import labels, likelihoods, read
from lorabench.scoring.rows import VERSION, Embedded, ScoredImage, ScoreRow, row
from lorabench.scoring.truth import CANDIDATES, CONTENT, STYLE, Readout, Split, Truth

TEMPERATURE = 0.07
DEVELOPMENT = dict(zip(ROLES, CANDIDATES["development"], strict=True))


@dataclass(frozen=True)
class Recognized:
    """What is recognized in images.

    Args:
        names: "class", "subject", "family" and "style" of each image, by split of the candidates.
        by: Backbone of each role's scores.
        version: Version of what recognizes.
    """

    names: Mapping[Split, Mapping[str, Sequence[str]]]
    by: Mapping[Role, str]
    version: str


def recognize(backbones: Sequence[Embedded], truth: Truth | None, factors: Embeddings | None) -> Recognized | None:
    """Return what is recognized in images; None if nothing recognizes them.

    Args:
        backbones: Embeddings by each backbone.
        truth: Readout of DINO and CSD with the candidates of all splits.
        factors: Outputs of the reader of factors.
    """
    rows = {each.images.name: each.images.rows for each in backbones}
    if truth is None or not {CONTENT[0], STYLE[0]} <= rows.keys():
        return None
    names: dict[Split, Mapping[str, Sequence[str]]]
    if factors is None:
        names = {split: truth.among(split).read(rows) for split in CANDIDATES}
        return Recognized(names, {"content": CONTENT[0], "style": STYLE[0]}, truth.version)
    names = {split: names_of(factors.rows[FACTORS], rows, truth.among(split)) for split in CANDIDATES}
    return Recognized(names, dict.fromkeys(ROLES, factors.name), f"{factors.version}+{truth.version}")


def names_of(outputs: Tensor, rows: Mapping[str, Mapping[str, Tensor]], truth: Truth) -> dict[str, list[str]]:
    """Return class, subject, family and style of each image.

    Args:
        outputs: Outputs of the reader of factors [n, WIDTH].
        rows: Embeddings by scorer and role, [n, d].
        truth: Readout of DINO and CSD; its individuals are the candidates.
    """
    found = read(outputs)

    def most_likely(readout: Readout, unit: Tensor) -> list[str]:
        likely = likelihoods(found, readout.names) + cosine_matrix(unit, readout.prototypes) / TEMPERATURE
        return [readout.names[i] for i in likely.argmax(dim=1).tolist()]

    return {
        "class": labels(found, "class"), "subject": most_likely(truth.content, rows[CONTENT[0]][CONTENT[1]]),
        "family": labels(found, "family"), "style": most_likely(truth.style, rows[STYLE[0]][STYLE[1]]),
    }  # fmt: skip


def recognition_rows(item: ScoredImage, index: int, found: Recognized) -> list[ScoreRow]:
    """Return 1 or 0 for class, subject, family and style; empty unless the pair is a single one of the microworld.

    Args:
        item: The image.
        index: Position of the image in `found`.
        found: What is recognized.
    """
    rows: list[ScoreRow] = []
    if not item.pair.is_single:
        return rows
    content, style = item.pair.concepts
    expected: list[tuple[str, Role, str, str]] = []  # metric, role, kind and right name
    if content.factors is not None:
        expected.append(("class_acc", "content", "class", content.factors.cls))
        expected.append(("subject_r1", "content", "subject", content.name))
    if style.factors is not None:
        expected.append(("family_acc", "style", "family", style.factors.family))
        expected.append(("style_r1", "style", "style", style.name))
    for metric, role, kind, right in expected:
        split: Split = "development" if item.pair.names[role] in DEVELOPMENT[role] else "heldout"
        value = float(found.names[split][kind][index] == right)
        rows.append(row(item, metric, found.by[role], role, right, value, f"{VERSION}-{found.version}"))
    return rows
