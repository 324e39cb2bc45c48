"""A judge with the ground truth: the microworld renders the true subject and style, and images are compared with them.

    subject   mean cosine (dino@micro) of the image with the subject, rendered in the style in other poses
    style     mean cosine (csd@micro) of the image with other subjects, rendered in the style
    both      the smaller of the two

Each is scaled: 1 is the mean cosine among renderings of the true subject (style), 0 that with renderings of others. So
subjects are compared within the true style, which a comparison with photographs cannot do. It makes errors; its
accuracy on control items is printed with every verdict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from lorabench.base import UserError, seed_of
from lorabench.data import microworld as mw
from lorabench.data.microworld_pairs import render
from lorabench.scoring.files import MICRO_SCORERS
from lorabench.scoring.judges.comparison import Comparison
from lorabench.scoring.judges.questions import Ask
from lorabench.scoring.load import load_scorers

if TYPE_CHECKING:
    from lorabench.data.concepts import Role
    from lorabench.scoring.scorer import Scorer

VERSION = 1  # raise it if answers change under the same settings
BACKBONES: dict[Role, str] = {"content": "dino@micro", "style": "csd@micro"}
ROLES: dict[str, tuple[Role, ...]] = {"subject": ("content",), "style": ("style",), "both": ("content", "style")}
HAS = 0.8  # value from which an image has a subject or style; another of the same class has about 0.65


class TruthJudge(Comparison):
    """A judge for pairs of one subject and one style of the microworld.

    Args:
        renders: Number of rendered images of each kind.
        margin: Smaller differences are ties.
    """

    def __init__(self, renders: int, margin: float) -> None:
        self.renders, self.margin = renders, margin

    @property
    def name(self) -> str:
        return "truth"

    def identity(self) -> dict[str, Any]:
        scorers = {name: scorer.version for name, scorer in self.scorers.items()}
        return {
            "kind": "truth", "version": VERSION, "world": mw.VERSION, "scorers": scorers, "renders": self.renders,
            "margin": self.margin,
        }  # fmt: skip

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """Return the micro scorers by name."""
        return {each.name: each for each in load_scorers(MICRO_SCORERS) if each.name in BACKBONES.values()}

    def answer(self, ask: Ask) -> str:
        values = [min(self.value(role, path, ask.names) for role in ROLES[ask.question]) for path in ask.images]
        if len(values) == 2:
            apart = values[0] - values[1]
            token = "TIE" if abs(apart) <= self.margin else "A" if apart > 0 else "B"
        elif "YES" in ask.options:
            token = "YES" if values[0] >= HAS else "NO"
        else:
            token = str(round(4 * min(max(values[0], 0.0), 1.0)))
        return json.dumps({"answer": token, "values": [round(value, 4) for value in values]})

    def value(self, role: Role, path: Path, names: tuple[str, str]) -> float:
        """Return 1 for an image of the true subject (style), about 0 for another one."""
        same, low, high = self.anchors(role, names)
        return (float((self.embedded(role, path) @ same.T).mean()) - low) / (high - low)

    @cache  # noqa: B019, a judge lives as long as its process
    def embedded(self, role: Role, path: Path) -> torch.Tensor:
        """Return the embedding [1, d] of an image file."""
        with Image.open(path) as image:
            return self.embed(role, [image.convert("RGB")])

    @cache  # noqa: B019
    def anchors(self, role: Role, names: tuple[str, str]) -> tuple[torch.Tensor, float, float]:
        """Return embeddings [n, d] of renderings of the true concept, and the mean cosines that are scaled to 0 and 1.

        Raises:
            UserError: If the world has no such subject or style.
        """
        if any("+" in name for name in names):
            raise UserError(f"judge=truth knows one subject in one style, not {' in '.join(names)}; use judge=openai")
        subject, style = mw.subject(names[0]), mw.style(names[1])

        def individual(rng: np.random.Generator) -> mw.Subject:
            return mw.sample_subject(rng)

        if role == "content":
            same = self.rendered("same", names, lambda rng: (subject, style))
            other = self.rendered("other", names, lambda rng: (individual(rng), style))
        else:
            same = self.rendered("same style", names, lambda rng: (individual(rng), style))
            other = self.rendered("other style", names, lambda rng: (individual(rng), mw.sample_style(rng)))
        rows, others = self.embed(role, same), self.embed(role, other)
        count = len(rows)
        high = float((rows @ rows.T).sum() - count) / (count * (count - 1))
        return rows, float((others @ rows.T).mean()), high

    def rendered(
        self, kind: str, names: tuple[str, str], sample: Callable[[np.random.Generator], tuple[mw.Subject, mw.Style]]
    ) -> list[Image.Image]:
        """Render images, each in a pose of its own; `sample` returns the subject and the style of one."""
        seeds = [seed_of("judge", kind, *names, index) for index in range(self.renders)]
        return [render(*sample(np.random.default_rng(seed)), seed) for seed in seeds]

    def embed(self, role: Role, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return embeddings [n, d] of images for a role."""
        return self.scorers[BACKBONES[role]].embed([np.asarray(image) for image in images])[role]
