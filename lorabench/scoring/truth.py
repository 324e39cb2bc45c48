"""What the microworld allows beside similarities: is it the right class, family, subject, style?

Linear heads read class and family, and the nearest prototype among all held-out subjects or styles names the
individual. All on frozen embeddings of the micro scorers; made by pretraining.readout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorabench.base import UserError
from lorabench.scoring.cosine import nearest
from lorabench.scoring.files import MICRO_SCORERS
from lorabench.scoring.scorer import Scorer
from lorabench.scoring.weights import read_safetensors

CONTENT, STYLE = ("dino@micro", "content"), ("csd@micro", "style")
PHOTO = "photo"  # the family head's name for what is in no style
Embeddings = Mapping[str, Mapping[str, torch.Tensor]]  # by scorer's name and role, unit rows [n, d]


@dataclass(frozen=True)
class Readout:
    """A linear head over `labels` (weight [k, d], bias [k]) and prototypes [m, d] of the held-out `names`."""

    labels: list[str]
    weight: torch.Tensor
    bias: torch.Tensor
    names: list[str]
    prototypes: torch.Tensor

    def label(self, unit: torch.Tensor) -> list[str]:
        """The most likely label of each unit row [n, d]."""
        return [self.labels[i] for i in (unit @ self.weight.T + self.bias).argmax(dim=1).tolist()]

    def name(self, unit: torch.Tensor) -> list[str]:
        """The held-out individual whose prototype is nearest to each unit row [n, d]."""
        return [self.names[i] for i in nearest(unit, self.prototypes).tolist()]


@dataclass(frozen=True)
class Truth:
    """Readouts of content (from dino) and style (from csd)."""

    content: Readout
    style: Readout
    version: str

    def read(self, embeddings: Embeddings) -> dict[str, list[str]]:
        """Per image [n]: "class", "subject", "family" and "style" as the scorers see them."""
        content, style = embeddings[CONTENT[0]][CONTENT[1]], embeddings[STYLE[0]][STYLE[1]]
        return {
            "class": self.content.label(content),
            "subject": self.content.name(content),
            "family": self.style.label(style),
            "style": self.style.name(style),
        }


def load_truth(scorers: Sequence[Scorer], root: Path | str = MICRO_SCORERS) -> Truth:
    """The readout beside the micro scorers; UserError when it was fitted on other weights or another world."""
    from lorabench.data import microworld as mw

    path = Path(root) / "truth" / "config.json"
    if not path.is_file():
        raise UserError(f"truth readout not found: {path}; run python -m pretraining scorers")
    config = json.loads(path.read_text())
    found = {"world": mw.VERSION, **{s.name: s.version for s in scorers if s.name in (CONTENT[0], STYLE[0])}}
    for key in ("world", CONTENT[0], STYLE[0]):
        if config["made_for"].get(key) != found.get(key):
            raise UserError(f"{path} does not fit {key} {found.get(key)}; run python -m pretraining scorers")
    tensors = {name: value.float() for name, value in read_safetensors(path.with_name("model.safetensors")).items()}

    def readout(role: str) -> Readout:
        parts = (tensors[f"{role}.{part}"] for part in ("weight", "bias", "prototypes"))
        weight, bias, prototypes = parts
        return Readout(config[role]["labels"], weight, bias, config[role]["names"], prototypes)

    return Truth(readout("content"), readout("style"), "+".join(config["made_for"].values()))
