"""Types of the datasets' settings (conf/dataset/)."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from lorabench.config.settings import setting


@dataclass
class WorldSpec:
    """Settings of all datasets of the microworld."""

    name: str = MISSING
    subjects: Any = MISSING  # names, or a set: all (held out) | development; "a+b": both in one image
    styles: Any = MISSING  # names, or a set as for `subjects`; "a+b": a blend of both
    contents: list[str] | None = MISSING  # one group of subjects, instead of `subjects`


@dataclass
class MicroworldSpec(WorldSpec):
    """Settings of dataset=microworld."""

    content_images: int = setting(MISSING, least=1)  # training photos per subject
    style_images: int = setting(MISSING, least=1)  # training images per style
    references: int = setting(MISSING, least=1)  # further images per subject and style, for scoring
    pairs: Any = "crossed"  # crossed | matched, or a list of subject/style; see lorabench/data/matching.py
    count: int = setting(32, least=1)  # number of pairs if pairs=matched
    pairs_seed: int = setting(0, least=0)  # seed of the choice if pairs=matched


@dataclass
class StylisedSpec(WorldSpec):
    """Settings of pairs that are known from the same images, see lorabench/data/microworld_stylised.py."""

    images: int = setting(MISSING, least=1)  # images of the subject in the style, which both are trained on
    references: int = setting(MISSING, least=1)  # photographs of the subject, and other subjects in the style
    scenes: int = setting(MISSING, least=1, most=6)  # places for uses=[content], other classes for uses=[style]
    style_words: bool = MISSING  # prompts name the style by its family; false: by prompts.style_token
    pairs: Any = MISSING  # matched, or a list of subject/style; each name once
    count: int = setting(MISSING, least=1)  # number of pairs if pairs=matched
    pairs_seed: int = setting(MISSING, least=0)  # seed of the choice if pairs=matched


@dataclass
class PhotoSpec:
    """Settings of all datasets of photographs."""

    name: str = MISSING
    contents: list[str] | None = MISSING  # one group of subjects, instead of `subjects`
    subjects: Any = MISSING  # names, or a set: all | live | object; "a+b": both in one image
    styles: Any = MISSING  # names, or all
    pairs: str = MISSING  # all | matched | random | the list of a publication: lorabench/data/pair_lists.yaml
    count: int = setting(MISSING, least=1)  # number of pairs if pairs=matched or random
    pairs_seed: int = setting(MISSING, least=0)  # seed of matched and random pairs
    references: Any = setting(MISSING, least=1)  # held-out images per subject; same: score against the training images

    @property
    def held_out(self) -> int:
        """Return the number of images per subject that are not trained on."""
        return 0 if self.references == "same" else int(self.references)


@dataclass
class DreamBoothStyleDropSpec(PhotoSpec):
    """Settings of dataset=dreambooth_styledrop."""

    root: str = MISSING  # a clone of google/dreambooth, or a folder that contains one
    style_root: str | None = MISSING  # a clone of StyleDrop-PyTorch, or a folder of images; null: root


@dataclass
class FolderSpec(PhotoSpec):
    """Settings of dataset=folder."""

    manifest: str = MISSING  # see lorabench/data/manifest.py


DatasetSpec = MicroworldSpec | StylisedSpec | DreamBoothStyleDropSpec | FolderSpec
