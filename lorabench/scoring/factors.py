"""The world's factors read from an image, and their distance to those of a subject or a style.

One small network per role reads the frozen embeddings of the micro scorers: class, proportions, body, accent and mark
from one, family, palette and strength from the other. `1 - distance` is the score `truth/content` or `truth/style`, in
[0, 1]. Distances have the weights of `content_distance` and `style_distance`. A class, family or mark that is read
with probability p counts as 1 - p of a wrong one; a hue that cannot be read counts as a quarter of a turn away.

The networks are trained by `python -m pretraining factors`; their own errors are in the card of the scorers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.data.microworld.colors import NAMED
from lorabench.data.microworld.factors import MARKS
from lorabench.scoring.files import MICRO_SCORERS, TRUTH
from lorabench.scoring.truth import Versioned
from lorabench.scoring.weights import read_safetensors

INPUTS = (("dino@micro", "content"), ("clip@micro", "content"), ("csd@micro", "content"), ("csd@micro", "style"))
FAMILIES = (*mw.FAMILIES, "photo")
CONTENT = {"class": 12, "mark": 6, "color": 11, "scene": 6, "shape": 3, "body": 3, "accent": 3, "mark_color": 3}
STYLE = {"family": 17, "hue": 2, "hue2": 2, "rest": 3}  # hues as (cos, sin); rest: scale, weight, ground
LABELS = {"class": mw.CLASSES, "mark": MARKS, "color": tuple(NAMED), "scene": mw.SCENES, "family": FAMILIES}
WIDTH = 256
FILE, DESCRIPTION = "factors.safetensors", "factors.json"

Embeddings = Mapping[str, Mapping[str, Tensor]]  # by scorer and role, L2-normalized rows [n, d]


class FactorNetwork(nn.Module):
    """Standardized embeddings -> all outputs of a role, in the order of `outputs`.

    Args:
        inputs: Width of the joined embeddings.
        outputs: Width of each output by its name.
    """

    def __init__(self, inputs: int, outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.layers = nn.Sequential(
            nn.Linear(inputs, WIDTH), nn.GELU(), nn.Dropout(0.2),
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.2),
            nn.Linear(WIDTH, sum(outputs.values())),
        )  # fmt: skip

    def forward(self, joined: Tensor) -> dict[str, Tensor]:
        """Joined embeddings [n, d] -> outputs [n, k] by name; those of LABELS are logits."""
        flat = self.layers((joined - self.mean) / self.deviation)
        return dict(zip(self.outputs, flat.split(list(self.outputs.values()), dim=1), strict=True))


def join(embeddings: Embeddings) -> Tensor:
    """Return the embeddings of INPUTS side by side, [n, d]."""
    return torch.cat([embeddings[name][role] for name, role in INPUTS], dim=1)


class FactorReader:
    """Reads images through the embeddings of the micro scorers."""

    def __init__(self, content: FactorNetwork, style: FactorNetwork, version: str) -> None:
        self.content, self.style, self.version = content.eval(), style.eval(), version

    @torch.no_grad()
    def read(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """Return probabilities [n, k] of the factors in LABELS, and the values [n, k] of the others."""
        joined = join(embeddings)
        found = {**self.content(joined), **self.style(joined)}
        return {name: value.softmax(1) if name in LABELS else value for name, value in found.items()}


def labels(read: Mapping[str, Tensor], name: str) -> list[str]:
    """Return the most likely label of each image."""
    return [LABELS[name][i] for i in read[name].argmax(dim=1).tolist()]


def content_distances(read: Mapping[str, Tensor], subject: mw.Subject) -> Tensor:
    """Return the distance [n] of the subjects in images to a subject, as `content_distance`."""
    values = subject_values(subject)

    def apart(name: str) -> Tensor:
        return (read[name] - torch.tensor(values[name])).norm(dim=1) / math.sqrt(3)

    wrong_class = 1 - read["class"][:, mw.CLASSES.index(subject.cls)]
    mark = 0.5 * (1 - read["mark"][:, MARKS.index(subject.mark)]) + 0.5 * apart("mark_color")
    identity = 0.3 * apart("shape") + 0.3 * apart("body") + 0.15 * apart("accent") + 0.25 * mark
    return (0.5 * wrong_class + 0.5 * identity).clamp(0, 1)


def style_distances(read: Mapping[str, Tensor], style: mw.Style) -> Tensor:
    """Return the distance [n] of the styles of images to a style, as `style_distance`."""
    wrong_family = 1 - read["family"][:, FAMILIES.index(style.family)]
    turns = [turn(read[name], hue) for name, hue in (("hue", style.hue), ("hue2", style.hue2))]
    rest = (read["rest"] - torch.tensor([style.scale, style.weight, style.ground])).abs().unbind(1)
    weighted = sum(w * each for w, each in zip((3, 1, 2, 2, 2), (*turns, *rest), strict=True)) / 10
    return (0.5 * wrong_family + 0.5 * weighted).clamp(0, 1)


def turn(read: Tensor, hue: float) -> Tensor:
    """Return twice the part of a turn between hues read as (cos, sin) [n, 2] and a hue; 0.5 if nothing is read."""
    apart = (torch.atan2(read[:, 1], read[:, 0]) / (2 * math.pi) - hue).remainder(1)
    known = read.norm(dim=1).clamp(max=1)
    return known * 2 * torch.minimum(apart, 1 - apart) + (1 - known) * 0.5


def subject_values(subject: mw.Subject) -> dict[str, list[float]]:
    """Return the factors of a subject that are numbers; a plain subject's mark has the color of its body."""
    mark = subject.body.rgb if subject.mark == "plain" else subject.mark_color.rgb
    colors = {"body": subject.body.rgb, "accent": subject.accent.rgb, "mark_color": mark}
    return {"shape": list(subject.shape), **{name: rgb.tolist() for name, rgb in colors.items()}}


def find_factors(scorers: Sequence[Versioned], root: Path | str = MICRO_SCORERS) -> FactorReader | None:
    """Return the networks next to the scorers, or None if there are none yet; raises UserError as `load_factors`."""
    return load_factors(scorers, root) if (Path(root) / TRUTH / DESCRIPTION).is_file() else None


def load_factors(scorers: Sequence[Versioned], root: Path | str = MICRO_SCORERS) -> FactorReader:
    """Load the networks next to the micro scorers.

    Raises:
        UserError: If they were trained on other weights or another world.
    """
    path = Path(root) / TRUTH / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{path} is missing; run python -m pretraining factors")
    config = json.loads(path.read_text())
    found = made_for(scorers)
    for key, version in config["made_for"].items():
        if found.get(key) != version:
            raise UserError(f"{path} does not fit {key} {found.get(key)}; run python -m pretraining factors")
    tensors = {name: value.float() for name, value in read_safetensors(path.with_name(FILE)).items()}
    networks = []
    for role, outputs in (("content", CONTENT), ("style", STYLE)):
        state = {name.removeprefix(f"{role}."): v for name, v in tensors.items() if name.startswith(f"{role}.")}
        network = FactorNetwork(len(state["mean"]), outputs)
        network.load_state_dict(state)
        networks.append(network)
    return FactorReader(*networks, version="+".join(config["made_for"].values()))


def made_for(scorers: Sequence[Versioned]) -> dict[str, str]:
    """Return the versions that a reader depends on: of the world, and of the scorers in INPUTS."""
    names = {name for name, _ in INPUTS}
    return {"world": mw.VERSION, **{scorer.name: scorer.version for scorer in scorers if scorer.name in names}}
