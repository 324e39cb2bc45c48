"""Captions of the world's images. The base model is trained on these sentences and no others."""

from __future__ import annotations

import numpy as np

from lorabench.data.microworld.colors import hue_name
from lorabench.data.microworld.factors import Pose, Style, Subject

PLACE = {
    "studio": "in a studio",
    "table": "on a wooden table",
    "grass": "on the grass",
    "beach": "on the beach",
    "snow": "in the snow",
    "night": "at night",
}
PLACES = tuple(PLACE.values())


def caption(subject: Subject, style: Style | None, pose: Pose, rng: np.random.Generator | None = None) -> str:
    """Return a sentence such as "a photo of a red striped mug on the beach" or "a red mug in blue halftone style".

    Args:
        subject: The subject.
        style: The style; None for a photograph.
        pose: The pose, for the scene of a photograph.
        rng: Omit each detail at random, so that a model also learns "a mug" and "a mug in halftone style". None: keep
            all details.
    """

    def maybe(word: str, chance: float) -> str:
        return word + " " if word and (rng is None or rng.random() < chance) else ""

    thing = (
        f"a {maybe(subject.body.name, 0.6)}{maybe('' if subject.mark == 'plain' else subject.mark, 0.5)}{subject.cls}"
    )
    if style is None:
        return f"{maybe('a photo of', 0.6)}{thing} {maybe(PLACE[pose.scene], 0.6)}".strip()
    return f"{thing} in {maybe(hue_name(style.hue), 0.6)}{style.family} style"


def vocabulary() -> list[str]:
    """Return every word that captions have."""
    from lorabench.data.microworld.colors import NAMED
    from lorabench.data.microworld.factors import CLASSES, FAMILIES, MARKS

    words = {"a", "photo", "of", "in", "style", *NAMED, *CLASSES, *FAMILIES, *MARKS}
    for place in PLACES:
        words.update(place.split())
    return sorted(words)
