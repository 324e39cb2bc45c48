"""Stage 4: every image against its references, one row a number.

An image is decoded once for all scorers, and resized once for those that want the same size; references and texts are
embedded once for all images that share them (lorabench/scoring/references.py). A row is one image x metric x reference,
so that any paper's averaging can be computed from the rows later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lorabench.base import UserError
from lorabench.data.pairs import Pair, Scene
from lorabench.engine.lightning import Written, quiet_trainer
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

CPU = torch.device("cpu")

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """An image to score: decoded (uint8 [H, W, 3]) or the path of one, its pair, and the other KEYS of its rows.

    text: the plain words of its scene, for CLIP-T.
    keys: those left out (method, say, when a store holds what a method drew) are left out of the rows too; "prompt",
        what the image was drawn from, is always there.
    """

    image: np.ndarray | Path
    pair: Pair
    text: str
    keys: Mapping[str, Any]

    def known(self) -> Row:
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


def similarity_rows(item: Item, scorer: Scorer, image: Mapping[str, torch.Tensor], references: References) -> list[Row]:
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


def truth_rows(item: Item, read: Mapping[str, str], truth: Truth) -> list[Row]:
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


def row(item: Item, metric: str, backbone: str, role: str, reference: str, value: float, version: str) -> Row:
    """One line of scores.parquet, in the order of COLUMNS."""
    return {
        **item.known(),
        "metric": metric, "backbone": backbone, "role": role, "reference": reference,
        "value": float(value), "version": version,
    }  # fmt: skip


Batch = tuple[int, list[tuple[int, np.ndarray]]]  # its number, and (position, picture) of its items


class Decoded(Dataset[Batch]):
    """Batches of items, decoded on demand; plain tuples and lists, which Lightning passes through untouched."""

    def __init__(self, items: Sequence[Item], size: int, numbers: Sequence[int]) -> None:
        self.items, self.size, self.numbers = items, size, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Batch:
        start = self.numbers[index] * self.size
        items = self.items[start : start + self.size]
        return self.numbers[index], [(start + i, item.load()) for i, item in enumerate(items)]


class Scoring(pl.LightningModule):
    """predict_step: a batch -> the rows of its items."""

    def __init__(
        self, items: Sequence[Item], scorers: Sequence[Scorer], truth: Truth | None, references: References
    ) -> None:
        super().__init__()
        self.items, self.truth, self.references = items, truth, references
        self.scorers = torch.nn.ModuleList(scorers)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Row]:
        _, found = batch
        items = [self.items[position] for position, _ in found]
        pictures = [picture for _, picture in found]
        rows: list[list[Row]] = [[] for _ in items]
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
    items: Sequence[Item],
    scorers: Sequence[Scorer],
    truth: Truth | None = None,
    batch: int = 32,
    references: References | None = None,
    place: torch.device = CPU,
) -> list[Row]:
    """Rows of all items, ordered as the items are: of an item all scorers, then the truth.

    references: what is known of references and texts already, and learns of those of these items.
    """
    if not items:
        return []
    parts: dict[int, list[Row]] = {}
    numbers = range(-(-len(items) // batch))
    score_batches(items, scorers, numbers, parts.__setitem__, truth, batch, references, place)
    return joined([parts[number] for number in numbers], items)


def score_batches(
    items: Sequence[Item],
    scorers: Sequence[Scorer],
    numbers: Sequence[int],
    write: Callable[[int, list[Row]], None],
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


def joined(parts: Sequence[list[Row]], items: Sequence[Item]) -> list[Row]:
    """The rows of all batches in the order of the items; RuntimeError unless each is there once."""
    rows = [row for part in parts for row in part]
    check_rows(rows, items)
    return rows


def items_of(
    images: Sequence[np.ndarray | Path],
    pair: Pair,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    keys: Mapping[str, Any],
) -> list[Item]:
    """The images of one pair; scenes and seeds [n] belong to images [n] (decoded, or paths).

    keys: the KEYS all have in common, of dataset, world, method, ablation, model.
    """
    return [
        Item(image, pair, scene.text, {**keys, "prompt": scene.prompt, "seed": seed, "image": i})
        for i, (image, scene, seed) in enumerate(zip(images, scenes, seeds, strict=True))
    ]


def check_unique(rows: Sequence[Row]) -> None:
    """RuntimeError when a value was computed twice for the same image, metric and reference."""
    seen = set()
    for r in rows:
        key = tuple(r.get(column) for column in UNIQUE)
        if key in seen:
            raise RuntimeError(f"scored twice: {dict(zip(UNIQUE, key, strict=True))}")
        seen.add(key)


def check_rows(rows: Sequence[Row], items: Sequence[Item]) -> None:
    """RuntimeError unless rows are unique and every item has all metrics, of all backbones, that its pair can have."""
    check_unique(rows)
    metrics = {(r["metric"], r["backbone"]) for r in rows}
    found: dict[tuple, set[tuple[str, str]]] = {}
    for r in rows:
        found.setdefault(tuple(r.get(key) for key in KEYS), set()).add((r["metric"], r["backbone"]))
    for item in items:
        known = item.known()
        expected = set(metrics)
        if not item.pair.is_single or item.pair.contents[0].factors is None:
            expected -= {("class_acc", CONTENT[0]), ("subject_r1", CONTENT[0])}
        if not item.pair.is_single or item.pair.styles[0].factors is None:
            expected -= {("family_acc", STYLE[0]), ("style_r1", STYLE[0])}
        missing = expected - found.get(tuple(known.get(key) for key in KEYS), set())
        if missing:
            names = ", ".join(f"{metric} by {backbone}" for metric, backbone in sorted(missing))
            raise RuntimeError(f"image {known.get('image')} of {item.pair.name} lacks {names}")
