"""The world's factors read from an image, and their distance to those of a subject or a style.

A small network reads them from the pixels (factor_network.py): class, proportions, body, accent and mark of the
subject; family, palette and strength of the style. `1 - distance` is the score `truth/content` or `truth/style`, in
[0, 1]. Distances have the weights of `content_distance` and `style_distance`. A class, family or mark that is read
with probability p counts as 1 - p of a wrong one; a hue that cannot be read counts as a quarter of a turn away.

The network also predicts a variance of each number, which gives the likelihood of a subject's factors,

    log p(subject | image) = log p(class) + log p(mark) + sum over numbers of log N(number; mean, variance)

and the same for styles (recognition.py). Its errors are in the card of the scorers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorabench.data import microworld as mw
from lorabench.data.microworld.colors import NAMED
from lorabench.data.microworld.factors import MARKS

FAMILIES = (*mw.FAMILIES, "photo")
LABELS = {"class": mw.CLASSES, "mark": MARKS, "color": tuple(NAMED), "scene": mw.SCENES, "family": FAMILIES}
# Numbers in [0, 1]; hues as (cos, sin); rest: scale, weight, ground.
NUMBERS = {"shape": 3, "body": 3, "accent": 3, "mark_color": 3, "hue": 2, "hue2": 2, "rest": 3}
SUBJECT, STYLE = ("shape", "body", "accent", "mark_color"), ("hue", "hue2", "rest")  # the numbers of each
OUTPUTS = {**{name: len(words) for name, words in LABELS.items()}, **{name: 2 * k for name, k in NUMBERS.items()}}
WIDTH = sum(OUTPUTS.values())
LEAST_DEVIATION = 0.03  # lower bound, so that no single number decides who is recognized

Read = Mapping[str, Tensor]


def split(rows: Tensor) -> dict[str, Tensor]:
    """Split the network's rows [n, WIDTH] by factor."""
    return dict(zip(OUTPUTS, rows.split(list(OUTPUTS.values()), dim=1), strict=True))


def read(rows: Tensor) -> dict[str, Tensor]:
    """Convert the network's rows [n, WIDTH] to probabilities, means and deviations.

    Returns:
        Probabilities [n, k] of the factors in LABELS; means [n, k] of those in NUMBERS, and "<name> deviation".
    """
    found: dict[str, Tensor] = {}
    for name, value in split(rows).items():
        if name in LABELS:
            found[name] = value.softmax(1)
        else:
            found[name], spread = value.chunk(2, dim=1)
            found[f"{name} deviation"] = (spread / 2).exp().clamp(LEAST_DEVIATION, 1)
    return found


def labels(found: Read, name: str) -> list[str]:
    """Return the most likely label of each image."""
    return [LABELS[name][i] for i in found[name].argmax(dim=1).tolist()]


def content_distances(found: Read, subject: mw.Subject) -> Tensor:
    """Return the distance [n] of the subjects in images to a subject, as `content_distance`."""
    values = subject_values(subject)

    def apart(name: str) -> Tensor:
        return (found[name] - torch.tensor(values[name])).norm(dim=1) / math.sqrt(3)

    wrong_class = 1 - found["class"][:, mw.CLASSES.index(subject.cls)]
    mark = 0.5 * (1 - found["mark"][:, MARKS.index(subject.mark)]) + 0.5 * apart("mark_color")
    identity = 0.3 * apart("shape") + 0.3 * apart("body") + 0.15 * apart("accent") + 0.25 * mark
    return (0.5 * wrong_class + 0.5 * identity).clamp(0, 1)


def style_distances(found: Read, style: mw.Style) -> Tensor:
    """Return the distance [n] of the styles of images to a style, as `style_distance`."""
    wrong_family = 1 - found["family"][:, FAMILIES.index(style.family)]
    turns = [turn(found[name], hue) for name, hue in (("hue", style.hue), ("hue2", style.hue2))]
    rest = (found["rest"] - torch.tensor([style.scale, style.weight, style.ground])).abs().unbind(1)
    weighted = sum(w * each for w, each in zip((3, 1, 2, 2, 2), (*turns, *rest), strict=True)) / 10
    return (0.5 * wrong_family + 0.5 * weighted).clamp(0, 1)


def turn(hues: Tensor, hue: float) -> Tensor:
    """Return twice the part of a turn between hues read as (cos, sin) [n, 2] and a hue; 0.5 if nothing is read."""
    apart = (torch.atan2(hues[:, 1], hues[:, 0]) / (2 * math.pi) - hue).remainder(1)
    known = hues.norm(dim=1).clamp(max=1)
    return known * 2 * torch.minimum(apart, 1 - apart) + (1 - known) * 0.5


def subject_values(subject: mw.Subject) -> dict[str, list[float]]:
    """Return the factors of a subject that are numbers; a plain subject's mark has the color of its body."""
    mark = subject.body.rgb if subject.mark == "plain" else subject.mark_color.rgb
    colors = {"body": subject.body.rgb, "accent": subject.accent.rgb, "mark_color": mark}
    return {"shape": list(subject.shape), **{name: rgb.tolist() for name, rgb in colors.items()}}


def style_values(style: mw.Style) -> dict[str, list[float]]:
    """Return the factors of a style that are numbers."""
    hues = {name: 2 * math.pi * hue for name, hue in (("hue", style.hue), ("hue2", style.hue2))}
    return {
        **{name: [math.cos(a), math.sin(a)] for name, a in hues.items()},
        "rest": [style.scale, style.weight, style.ground],
    }


def likelihoods(found: Read, names: Sequence[str]) -> Tensor:
    """Return the log likelihood [n, m] of subjects, or of styles, by name, without its constant part."""
    subjects = {*mw.HELDOUT_SUBJECTS, *mw.DEVELOPMENT_SUBJECTS}
    known = [mw.subject(name) if name in subjects else mw.style(name) for name in names]
    return torch.stack([likelihood(found, thing) for thing in known], dim=1)


def likelihood(found: Read, thing: mw.Subject | mw.Style) -> Tensor:
    """Return the log likelihood [n] of the factors of a subject or a style, without its constant part."""
    if isinstance(thing, mw.Subject):
        words, numbers = {"class": thing.cls, "mark": thing.mark}, subject_values(thing)
    else:
        words, numbers = {"family": thing.family}, style_values(thing)
    total = torch.stack(
        [found[name][:, LABELS[name].index(word)].clamp_min(1e-4).log() for name, word in words.items()]
    ).sum(0)
    for name, value in numbers.items():
        deviation = found[f"{name} deviation"]
        total = total - (((found[name] - torch.tensor(value)) / deviation).square() / 2 + deviation.log()).sum(dim=1)
    return total
