"""Work of the stages `embed` and `score`: embeddings of images and texts by a backbone, and scores of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lorabench.data.concepts import Concept, Reference
from lorabench.data.pairs import Pair
from lorabench.engine.devices import device_name
from lorabench.engine.work import BatchWork, Progress
from lorabench.scoring.description import ScorerFiles
from lorabench.scoring.files import ScorerSet
from lorabench.tasks.jobs import load_scorer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.scoring.rows import Embedded

SCORES = "scores.parquet"


@dataclass(frozen=True)
class EmbedImages(BatchWork):
    """Compute the embeddings of images by one backbone; a batch of several backbones decodes each image once.

    Args:
        scorer: Files of the backbone.
        accelerator: "cpu", "gpu" or "auto".
        images: Image files, or references.
        batch: Images per forward pass.
    """

    batch_size: ClassVar[int] = 64
    scorer: ScorerFiles
    accelerator: str
    images: tuple[Path | Reference, ...]
    batch: int

    @classmethod
    def run(cls, works: Sequence[EmbedImages], folders: Sequence[Path], progress: Progress) -> None:
        from lorabench.engine.costs import shared_cost
        from lorabench.scoring.embeddings import embed_images

        first, count = works[0], len(works)
        scorers = [load_scorer(work.scorer, device_name(work.accelerator)) for work in works]
        with shared_cost(folders):
            found = embed_images(first.images, scorers, first.batch, lambda done: progress(done * count))
        for embeddings, folder in zip(found, folders, strict=True):
            embeddings.save(folder)


@dataclass(frozen=True)
class EmbedTexts:
    """Compute the embeddings of texts by one backbone."""

    scorer: ScorerFiles
    accelerator: str
    texts: tuple[str, ...]

    def __call__(self, folder: Path, progress: Progress) -> None:
        from lorabench.engine.costs import cost
        from lorabench.scoring.embeddings import embed_texts

        with cost(folder):
            embed_texts(self.texts, load_scorer(self.scorer, device_name(self.accelerator))).save(folder)
        progress(1)


@dataclass(frozen=True)
class Score:
    """Write scores.parquet for the images of one pair: one row per image, metric, backbone and reference.

    Args:
        scorers: Files of all scorers.
        pair: The pair.
        seeds: Seed of each image.
        images: Folder of the images' embeddings, one per backbone.
        references: Folders of the references' embeddings, per backbone and concept of the pair.
        texts: Folder of the texts' embeddings per backbone; None if the backbone embeds no text.
        training: Folders of the training images' embeddings, per backbone and concept; empty if copying is not scored.
        factors: Folder of the factors read from the images; None if nothing reads them.
    """

    scorers: ScorerSet
    pair: Pair
    seeds: tuple[int, ...]
    images: tuple[Path, ...]
    references: tuple[tuple[Path, ...], ...]
    texts: tuple[Path | None, ...]
    training: tuple[tuple[Path, ...], ...]
    factors: Path | None

    def __call__(self, folder: Path, progress: Progress) -> None:
        import pandas as pd

        from lorabench.engine.costs import cost
        from lorabench.scoring.complete import expected_scores
        from lorabench.scoring.embeddings import Embeddings
        from lorabench.scoring.rows import images_of
        from lorabench.scoring.score import score_rows
        from lorabench.scoring.truth import load_truth

        shots = self.pair.shots(len(self.seeds) // len(self.pair.drawn))
        with cost(folder):
            backbones = [self.embedded(index) for index in range(len(self.images))]
            images = [each.images for each in backbones]
            truth = load_truth(images, self.scorers.truth) if self.scorers.truth else None
            factors = Embeddings.load(self.factors) if self.factors else None
            expected = expected_scores(self.scorers.metrics(), truth is not None, factors is not None)
            rows = score_rows(images_of(self.pair, shots, self.seeds, {}), backbones, expected, truth, factors)
            pd.DataFrame(rows).to_parquet(folder / SCORES, index=False)
        progress(1)

    def embedded(self, backbone: int) -> Embedded:
        """Return the embeddings of images, references and texts by one backbone."""
        from lorabench.scoring.embeddings import TEXT, Embeddings
        from lorabench.scoring.rows import Embedded

        def by_image(folder: Path, images: Sequence[Reference]) -> dict[str, dict[str, Tensor]]:
            rows = Embeddings.load(folder).rows
            return {
                image.sha256: {role: vectors[index] for role, vectors in rows.items()}
                for index, image in enumerate(images)
            }

        references, training = {}, {}
        for concept, folder in zip(self.pair.concepts, self.references[backbone], strict=True):
            references |= by_image(folder, concept.references)
        for concept, folder in zip(trained(self.pair), self.training[backbone], strict=False):  # none: not scored
            training |= by_image(folder, concept.images)
        place = self.texts[backbone]
        texts = dict(zip(texts_of(self.pair), Embeddings.load(place).rows[TEXT], strict=True)) if place else {}
        return Embedded(Embeddings.load(self.images[backbone]), references, texts, training)


def trained(pair: Pair) -> list[Concept]:
    """Return the concepts of a pair that have training images."""
    return [concept for concept in pair.concepts if concept.images]


def texts_of(pair: Pair) -> tuple[str, ...]:
    """Return the texts that images of a pair are compared with: descriptions and prompts of its scenes."""
    return tuple(dict.fromkeys(text for scene in pair.drawn for text in (scene.text, scene.prompt)))
