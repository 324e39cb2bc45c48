"""Artifacts of embeddings (of images, references and texts, by each backbone) and of the scores computed from them.

An image is embedded once per backbone, whatever it is compared with. So a new metric or reference needs no new
embeddings of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lorabench.config.schemas import TrainerSpec
from lorabench.data.concepts import Concept, Reference
from lorabench.data.pairs import Pair
from lorabench.engine.artifact import Artifact
from lorabench.engine.devices import device_name
from lorabench.engine.record import key_of
from lorabench.engine.store import Store
from lorabench.engine.work import BatchWork, Progress
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.files import ScorerSet
from lorabench.tasks.jobs import load_scorer
from lorabench.tasks.units import file_name

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.scoring.rows import Embedded

VERSIONS = {"embed": 1, "score": 6}
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


@dataclass(frozen=True)
class Scoring:
    """Builder of the artifacts of embeddings and scores.

    Args:
        store: The store.
        scorers: Files of all scorers.
        trainer: Device.
        digest: Hash of the files of all scorers and of the readout.
        world: Version of the microworld; "" for photographs.
        batch: Images per forward pass of a backbone. It changes the last digits.
    """

    store: Store
    scorers: ScorerSet
    trainer: TrainerSpec
    digest: str
    world: str
    batch: int

    @cached_property
    def digests(self) -> dict[ScorerFiles, str]:
        """Return the hash of each scorer's files."""
        return {files: self.store.digest(*files.contents()) for files in self.networks}

    @cached_property
    def names(self) -> dict[ScorerFiles, str]:
        """Return the name of each scorer."""
        return {files: read_config(files.config)["name"] for files in self.networks}

    @property
    def networks(self) -> list[ScorerFiles]:
        """Return the scorers and the reader of factors."""
        return [*self.scorers.scorers, *([self.reader] if self.reader else [])]

    @property
    def reader(self) -> ScorerFiles | None:
        """Return the network that reads factors, if images are of the microworld."""
        return self.scorers.reader if self.world else None

    @cached_property
    def of_copying(self) -> set[ScorerFiles]:
        """Return the scorers that copying is scored by."""
        return {files for files in self.scorers.scorers if read_config(files.config)["kind"] == "dino"}

    @cached_property
    def with_text(self) -> set[ScorerFiles]:
        """Return the scorers that also embed texts."""
        return {files for files in self.scorers.scorers if read_config(files.config)["kind"] == "clip"}

    def score(self, name: str, pair: Pair, images: Artifact, seeds: Sequence[int]) -> Artifact:
        """Return the artifact with the scores of a pair's images, one image per seed.

        Args:
            name: Name of the artifact.
            pair: The pair.
            images: Artifact with the images.
            seeds: Seed of each image.
        """
        embedded = [self.of_images(files, name, images, len(seeds)) for files in self.scorers.scorers]
        references = [
            [self.of_references(files, each, each.references) for each in pair.concepts]
            for files in self.scorers.scorers
        ]
        training = [
            [self.of_references(files, each, each.images) for each in trained(pair) if files in self.of_copying]
            for files in self.scorers.scorers
        ]
        texts = [self.of_texts(files, pair) if files in self.with_text else None for files in self.scorers.scorers]
        factors = [self.of_images(self.reader, name, images, len(seeds))] if self.reader else []
        inputs: Mapping[str, Sequence[Artifact]] = {
            "images": [images], "embeddings": embedded, "factors": factors,
            "references": [each for of in references for each in of],
            "texts": [each for each in texts if each], "training": [each for of in training for each in of],
        }  # fmt: skip
        params = {
            "scorers": self.digest, "world": self.world, "names": [pair.content_name, pair.style_name],
            "seeds": list(seeds), "scenes": [[scene.prompt, scene.text] for scene in pair.drawn],
            "references": [[image.sha256 for image in concept.references] for concept in pair.concepts],
            "training": [[image.sha256 for image in concept.images] for concept in pair.concepts],
        }  # fmt: skip
        path = self.store.path
        work = Score(
            self.scorers, pair, tuple(seeds), tuple(path(each) for each in embedded),
            tuple(tuple(path(each) for each in of) for of in references),
            tuple(path(each) if each else None for each in texts),
            tuple(tuple(path(each) for each in of) for of in training), path(factors[0]) if factors else None,
        )  # fmt: skip
        return Artifact("score", name, VERSIONS["score"], params, work, inputs)

    def of_images(self, files: ScorerFiles, name: str, images: Artifact, count: int) -> Artifact:
        """Return the artifact with the embeddings of generated images."""
        params = {"scorer": self.digests[files], "images": count, "batch": self.batch}
        paths = tuple(self.store.path(images) / file_name(index) for index in range(count))
        work = EmbedImages(files, self.trainer.accelerator, paths, self.batch)
        return self.embed(f"{self.names[files]} {name}", params, work, {"images": [images]}, count, images.key)

    def of_references(self, files: ScorerFiles, concept: Concept, images: Sequence[Reference]) -> Artifact:
        """Return the artifact with the embeddings of a concept's images, each in a batch of its own."""
        names = [each.sha256 for each in images]
        params = {"scorer": self.digests[files], "references": names}
        work = EmbedImages(files, self.trainer.accelerator, tuple(images), 1)
        name = f"{self.names[files]} {concept.role} {concept.name}"
        return self.embed(name, params, work, {}, len(images), key_of("batch", {"references": names}))

    def of_texts(self, files: ScorerFiles, pair: Pair) -> Artifact:
        """Return the artifact with the embeddings of a pair's prompts and descriptions."""
        texts = texts_of(pair)
        params = {"scorer": self.digests[files], "texts": list(texts)}
        work = EmbedTexts(files, self.trainer.accelerator, texts)
        return self.embed(f"{self.names[files]} texts {pair.name}", params, work, {}, 1, None)

    def embed(
        self, name: str, params: dict[str, Any], work: EmbedImages | EmbedTexts, inputs: dict[str, list[Artifact]],
        count: int, batch_key: str | None,
    ) -> Artifact:  # fmt: skip
        """Return an artifact of the stage `embed`.

        Args:
            name: Name of the artifact.
            params: Parameters of its key.
            work: Its work.
            inputs: Its inputs.
            count: Number of images or texts.
            batch_key: Artifacts with the same key are embedded in one batch; None: by itself.
        """
        return Artifact("embed", name, VERSIONS["embed"], params, work, inputs, count, 2.0 * count, batch_key)


def trained(pair: Pair) -> list[Concept]:
    """Return the concepts of a pair that have training images."""
    return [concept for concept in pair.concepts if concept.images]


def texts_of(pair: Pair) -> tuple[str, ...]:
    """Return the texts that images of a pair are compared with: descriptions and prompts of its scenes."""
    return tuple(dict.fromkeys(text for scene in pair.drawn for text in (scene.text, scene.prompt)))
