"""Artifacts of embeddings (of images, references and texts, by each backbone) and of the scores computed from them.

An image is embedded once per backbone, whatever it is compared with. So a new metric or reference needs no new
embeddings of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorabench.config.schemas import TrainerSpec
from lorabench.data.concepts import Concept, Reference
from lorabench.data.pairs import Pair
from lorabench.engine.artifact import Artifact
from lorabench.engine.record import key_of
from lorabench.engine.store import Store
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.files import ScorerSet
from lorabench.tasks.score_jobs import EmbedImages, EmbedTexts, Score, texts_of, trained
from lorabench.tasks.units import file_name

VERSIONS = {"embed": 1, "score": 7}


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
