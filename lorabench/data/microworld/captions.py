"""What a picture of the world is called. The base model is trained on these sentences and no others."""

from __future__ import annotations

import numpy as np

from lorabench.data.microworld.colours import hue_name
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
    """A sentence such as "a photo of a red striped mug on the beach" or "a red mug in blue halftone style".

    Without `rng` everything is said; with it, each detail is left out at random, so that a bare "a mug" and
    "a mug in halftone style" are known to the model too.
    """

    def say(word: str, chance: float) -> str:
        return word + " " if word and (rng is None or rng.random() < chance) else ""

    thing = f"a {say(subject.body.name, 0.6)}{say('' if subject.mark == 'plain' else subject.mark, 0.5)}{subject.cls}"
    if style is None:
        return f"{say('a photo of', 0.6)}{thing} {say(PLACE[pose.scene], 0.6)}".strip()
    return f"{thing} in {say(hue_name(style.hue), 0.6)}{style.family} style"


def vocabulary() -> list[str]:
    """Every word a caption can hold."""
    from lorabench.data.microworld.colours import NAMED
    from lorabench.data.microworld.factors import CLASSES, FAMILIES, MARKS

    words = {"a", "photo", "of", "in", "style", *NAMED, *CLASSES, *FAMILIES, *MARKS}
    for place in PLACES:
        words.update(place.split())
    return sorted(words)
