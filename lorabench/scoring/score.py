"""Score images against their references.

An image is decoded once for all scorers and resized once for all that need the same size. References and texts are
embedded once for all images that share them (lorabench/scoring/references.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lorabench.engine.lightning import Written, quiet_trainer
from lorabench.scoring.complete import expected_scores, joined
from lorabench.scoring.references import References
from lorabench.scoring.rows import ScoredImage, ScoreRow, similarity_rows, truth_rows
from lorabench.scoring.scorer import Scorer
from lorabench.scoring.truth import CONTENT, STYLE, Truth

CPU = torch.device("cpu")

ImageBatch = tuple[int, list[tuple[int, np.ndarray]]]  # its number, and (position, picture) of its items


class Decoded(Dataset[ImageBatch]):
    """Batches of items, decoded on demand; plain tuples and lists, which Lightning passes through untouched."""

    def __init__(self, items: Sequence[ScoredImage], size: int, numbers: Sequence[int]) -> None:
        self.items, self.size, self.numbers = items, size, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> ImageBatch:
        start = self.numbers[index] * self.size
        items = self.items[start : start + self.size]
        return self.numbers[index], [(start + i, item.load()) for i, item in enumerate(items)]


class Scoring(pl.LightningModule):
    """predict_step: a batch -> the rows of its items."""

    def __init__(
        self, items: Sequence[ScoredImage], scorers: Sequence[Scorer], truth: Truth | None, references: References
    ) -> None:
        super().__init__()
        self.items, self.truth, self.references = items, truth, references
        self.scorers = torch.nn.ModuleList(scorers)

    def predict_step(self, batch: ImageBatch, batch_idx: int = 0) -> list[ScoreRow]:
        _, found = batch
        items = [self.items[position] for position, _ in found]
        pictures = [picture for _, picture in found]
        rows: list[list[ScoreRow]] = [[] for _ in items]
        embeddings, cuts = {}, {}
        for scorer in self.scorers:
            assert isinstance(scorer, Scorer)
            if (geometry := scorer.preprocess.geometry) not in cuts:
                cuts[geometry] = scorer.preprocess.cut(pictures)
            embedded = embeddings[scorer.name] = scorer.embed_cut(cuts[geometry])
            for i, item in enumerate(items):
                one = {role: values[i : i + 1] for role, values in embedded.items()}
                rows[i] += similarity_rows(item, scorer, one, self.references)
        if self.truth is not None and CONTENT[0] in embeddings and STYLE[0] in embeddings:
            read = self.truth.read(embeddings)
            for i, item in enumerate(items):
                rows[i] += truth_rows(item, {what: names[i] for what, names in read.items()}, self.truth)
        return [row for of_item in rows for row in of_item]


def score_items(
    items: Sequence[ScoredImage],
    scorers: Sequence[Scorer],
    truth: Truth | None = None,
    batch: int = 32,
    references: References | None = None,
    place: torch.device = CPU,
) -> list[ScoreRow]:
    """Rows of all items, ordered as the items are: of an item all scorers, then the truth.

    references: what is known of references and texts already, and learns of those of these items.
    """
    if not items:
        return []
    parts: dict[int, list[ScoreRow]] = {}
    numbers = range(-(-len(items) // batch))
    score_batches(items, scorers, numbers, parts.__setitem__, truth, batch, references, place)
    expected = expected_scores({scorer.name: scorer.metrics for scorer in scorers}, truth is not None)
    return joined([parts[number] for number in numbers], items, expected)


def score_batches(
    items: Sequence[ScoredImage],
    scorers: Sequence[Scorer],
    numbers: Sequence[int],
    write: Callable[[int, list[ScoreRow]], None],
    truth: Truth | None,
    batch: int,
    references: References | None,
    place: torch.device,
) -> None:
    """Call write(number, rows) with each of the batches of these numbers, of all that the items make."""
    loader = DataLoader(Decoded(items, batch, numbers), batch_size=None, collate_fn=untouched)
    runner = quiet_trainer(place, "32-true", [Written(lambda asked, rows: write(asked[0], rows))])
    runner.predict(Scoring(items, scorers, truth, references or References()), loader, return_predictions=False)


def untouched(batch: Any) -> Any:
    return batch
