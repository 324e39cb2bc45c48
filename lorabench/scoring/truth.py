"""Recognition scores of the microworld: does an image show the right class, family, subject and style?

Linear heads predict class and family. The nearest prototype identifies the individual: among the held-out subjects or
styles, and for development names among those. Both use frozen embeddings of the micro scorers and are fitted by
pretraining.readout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.data.concepts import ROLES
from lorabench.scoring.cosine import nearest
from lorabench.scoring.files import MICRO_SCORERS
from lorabench.scoring.weights import read_safetensors

CONTENT, STYLE = ("dino@micro", "content"), ("csd@micro", "style")
PHOTO = "photo"  # the family head's label for images without a style
Split = Literal["heldout", "development"]
CANDIDATES: dict[Split, tuple[list[str], list[str]]] = {  # subjects and styles among which one is recognized
    "heldout": (mw.HELDOUT_SUBJECTS, mw.HELDOUT_STYLES),
    "development": (mw.DEVELOPMENT_SUBJECTS, mw.DEVELOPMENT_STYLES),
}
Embeddings = Mapping[str, Mapping[str, torch.Tensor]]  # scorer's name -> role -> L2-normalized rows [n, d]


@dataclass(frozen=True)
class Readout:
    """A linear head over `labels` (weight [k, d], bias [k]) and prototypes [m, d] of the individuals `names`."""

    labels: list[str]
    weight: torch.Tensor
    bias: torch.Tensor
    names: list[str]
    prototypes: torch.Tensor

    def label(self, unit: torch.Tensor) -> list[str]:
        """Return the most likely label of each L2-normalized row [n, d]."""
        return [self.labels[i] for i in (unit @ self.weight.T + self.bias).argmax(dim=1).tolist()]

    def name(self, unit: torch.Tensor) -> list[str]:
        """Return the individual whose prototype is nearest to each L2-normalized row [n, d]."""
        return [self.names[i] for i in nearest(unit, self.prototypes).tolist()]

    def among(self, names: Sequence[str]) -> Readout:
        """Return the readout of which only these individuals are candidates."""
        rows = [self.names.index(name) for name in names]
        return replace(self, names=list(names), prototypes=self.prototypes[rows])


@dataclass(frozen=True)
class Truth:
    """Readouts of content (from DINO) and style (from CSD)."""

    content: Readout
    style: Readout
    version: str

    def among(self, split: Split) -> Truth:
        """Return the readouts of which only the names of a split are candidates."""
        subjects, styles = CANDIDATES[split]
        return replace(self, content=self.content.among(subjects), style=self.style.among(styles))

    def read(self, embeddings: Embeddings) -> dict[str, list[str]]:
        """Return the recognized "class", "subject", "family" and "style" of each image [n]."""
        content, style = embeddings[CONTENT[0]][CONTENT[1]], embeddings[STYLE[0]][STYLE[1]]
        return {
            "class": self.content.label(content),
            "subject": self.content.name(content),
            "family": self.style.label(style),
            "style": self.style.name(style),
        }


class Versioned(Protocol):
    """A scorer, or its embeddings."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


def load_truth(scorers: Sequence[Versioned], root: Path | str = MICRO_SCORERS) -> Truth:
    """Load the readout that belongs to the micro scorers.

    Raises:
        UserError: If it was fitted to other weights or another version of the microworld, or lacks names.
    """
    path = Path(root) / "truth" / "config.json"
    if not path.is_file():
        raise UserError(f"truth readout not found: {path}; run python -m pretraining scorers")
    config = json.loads(path.read_text())
    found = {"world": mw.VERSION, **{s.name: s.version for s in scorers if s.name in (CONTENT[0], STYLE[0])}}
    for key in ("world", CONTENT[0], STYLE[0]):
        if config["made_for"].get(key) != found.get(key):
            raise UserError(f"{path} does not fit {key} {found.get(key)}; run python -m pretraining scorers")
    known = {role: set(config[role]["names"]) for role in ROLES}
    lacking = [name for pair in CANDIDATES.values() for role, names in zip(ROLES, pair, strict=True)
               for name in names if name not in known[role]]  # fmt: skip
    if lacking:
        raise UserError(f"{path} has no prototype of {lacking[0]}; run python -m pretraining scorers")
    tensors = {name: value.float() for name, value in read_safetensors(path.with_name("model.safetensors")).items()}

    def readout(role: str) -> Readout:
        parts = (tensors[f"{role}.{part}"] for part in ("weight", "bias", "prototypes"))
        weight, bias, prototypes = parts
        return Readout(config[role]["labels"], weight, bias, config[role]["names"], prototypes)

    return Truth(readout("content"), readout("style"), "+".join(config["made_for"].values()))
