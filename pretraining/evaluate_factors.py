"""Measure the errors of the reader of factors on held-out things: every subject in 8 styles and in 4 photographs.

Errors are shares of right labels and mean absolute errors of numbers (hues in parts of a turn). Spearman's correlation
is that of read and true distances of the drawings to a subject or style, averaged over the subjects or styles;
"within" takes only drawings of the same class or family. For "of means", distances are first averaged over the drawings
of each subject or style, as a table averages over images. Ten of the sixteen families paint in inks of their own, so
that the colors of a subject are not in the image; figures are also given for the other six, and correlations for an
ideal reader, which knows all but these colors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from lorabench.data import microworld as mw
from lorabench.data.microworld.colors import LUMINANCE
from lorabench.scoring import factors
from lorabench.scoring.description import FACTORS, ScorerFiles
from lorabench.scoring.factors import LABELS, Read
from lorabench.scoring.files import MICRO_SCORERS, TRUTH
from lorabench.scoring.load import load_scorer, load_scorers
from lorabench.scoring.recognition import names_of
from lorabench.scoring.truth import CONTENT, STYLE, load_truth
from pretraining.card import fill
from pretraining.evaluate_scorers import CARD, PHOTO, Views, heldout_views
from pretraining.factor_examples import Thing, degraded, targets

FIGURES = "factors.json"
COLORED = ("watercolor", "crayon", "pixel", "glass", "clay", "stitch")  # families that keep a subject's colors


def evaluate_factors(root: Path = MICRO_SCORERS) -> dict[str, Any]:
    """Write root/factors.json and its part of the model card; return the figures."""
    reader, scorers = load_scorer(ScorerFiles.of(root / TRUTH / FACTORS)), load_scorers(root)
    truth, views = load_truth(scorers, root).among("heldout"), heldout_views()

    def measured(images: np.ndarray) -> dict[str, Any]:
        outputs = reader.embed(images)[FACTORS]
        rows = {scorer.name: scorer.embed(images) for scorer in scorers if scorer.name in (CONTENT[0], STYLE[0])}
        return {**figures_of(factors.read(outputs), views), "recognized": shares(names_of(outputs, rows, truth), views)}

    found = {**measured(views.images), "degraded": measured(degraded(views.images))}
    found["ideal"] = figures_of(ideal(views), views)["spearman"]
    (root / FIGURES).write_text(json.dumps(found, indent=1) + "\n")
    fill(root / CARD, FACTORS, as_markdown(found))
    return found


def figures_of(read: Read, views: Views) -> dict[str, Any]:
    """Return the errors on images, by kind of image and factor, and the rank correlations."""
    photo = np.array([style == PHOTO for style in views.styles])
    colored = np.array([mw.kind_of(style) in COLORED for style in views.styles])
    wanted = targets(things_in(views))
    kinds = {"drawings": ~photo, "in own colors": colored, "photographs": photo}
    figures: dict[str, Any] = {kind: errors(read, wanted, rows) for kind, rows in kinds.items()}
    figures["spearman"] = {}
    for role, names, lookup, far, true in (
        ("content", views.subjects, mw.subject, factors.content_distances, mw.content_distance),
        ("style", views.styles, mw.style, factors.style_distances, mw.style_distance),
    ):
        for kind, rows in (("", ~photo), (" in own colors", colored)):
            if kind and role == "style":
                continue
            drawn = np.flatnonzero(rows).tolist()
            for within in (False, True):
                name = f"{role}{' within' * within}{kind}"
                figures["spearman"][name] = rank(read, names, drawn, lookup, far, true, within)
                if not kind:
                    figures["spearman"][f"{name}, of means"] = rank(read, names, drawn, lookup, far, true, within, True)
    return figures


def things_in(views: Views) -> list[Thing]:
    """Return the factors of images."""
    return [
        (mw.subject(subject), None if style == PHOTO else mw.style(style), pose)
        for subject, style, pose in zip(views.subjects, views.styles, views.poses, strict=True)
    ]


def ideal(views: Views) -> Read:
    """Return the true factors of images, with grays of the same luminance for colors that the image does not have."""
    read = {
        name: F.one_hot(value.clamp_min(0), len(LABELS[name])).float() if name in LABELS else value
        for name, value in targets(things_in(views)).items()
    }
    shown = torch.tensor([style == PHOTO or mw.kind_of(style) in COLORED for style in views.styles])
    for name in ("body", "accent", "mark_color"):
        gray = read[name] @ torch.tensor(LUMINANCE, dtype=torch.float32)
        read[name] = torch.where(shown[:, None], read[name], gray[:, None])
    return read


def shares(names: Mapping[str, Sequence[str]], views: Views) -> dict[str, float]:
    """Return the shares of images whose held-out subject, style and both are recognized."""
    photo = np.array([style == PHOTO for style in views.styles])
    subject = np.array(names["subject"]) == np.array(views.subjects)
    style = np.array(names["style"]) == np.array(views.styles)
    return {
        "subject, drawings": float(subject[~photo].mean()), "subject, photographs": float(subject[photo].mean()),
        "style": float(style[~photo].mean()), "both": float((subject & style)[~photo].mean()),
    }  # fmt: skip


def errors(read: Read, wanted: dict[str, Tensor], rows: np.ndarray) -> dict[str, float]:
    """Return the share of right labels and the mean absolute error of numbers, of the factors that some rows show."""
    found = {}
    for name, target in wanted.items():
        value, right = read[name][rows], target[rows]
        if name in LABELS:
            shown = right >= 0
            error = (value.argmax(1) == right).float()
        else:
            shown = ~right.isnan().any(dim=1)
            error = apart(value, right) if "hue" in name else (value - right).abs().mean(dim=1)
        if bool(shown.any()):
            found[name] = float(error[shown].mean())
    return found


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Return the distance of hues given as (cos, sin) [n, 2], in parts of a turn."""
    angles = [torch.atan2(each[:, 1], each[:, 0]) / (2 * math.pi) for each in (one, other)]
    found = (angles[0] - angles[1]).remainder(1)
    return torch.minimum(found, 1 - found)


def rank(
    read: Read, names: Sequence[str], drawn: Sequence[int], lookup: Callable, far: Callable, true: Callable,
    within: bool, of_means: bool = False,
) -> float:  # fmt: skip
    """Return the mean over anchors of Spearman's correlation of read and true distances.

    Args:
        read: What is read from the images.
        names: Subject or style of each image.
        drawn: Images to use.
        lookup: Factors of a name.
        far: Function of `read` and factors that returns the distances [n].
        true: Function of two things' factors.
        within: Compare only images of the anchor's class or family.
        of_means: Average the read distances over the images of each name first.
    """
    found = []
    for anchor in sorted({names[i] for i in drawn}):
        kind = mw.kind_of(anchor)
        rows = [i for i in drawn if not within or mw.kind_of(names[i]) == kind]
        of = pd.Series(far(read, lookup(anchor))[rows].numpy(), [names[i] for i in rows])
        if of_means:
            of = of.groupby(level=0).mean()
        distances = [true(lookup(name), lookup(anchor)) for name in of.index]
        if len(set(distances)) > 1:
            found.append(spearmanr(of, distances).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    return float(np.mean(found))


def as_markdown(figures: dict[str, Any]) -> str:
    """Return the generated part of the model card."""
    kinds = ("drawings", "in own colors", "photographs")
    lines = ["| read | " + " | ".join(kinds) + " |", "|---|---|---|---|"]
    for name in figures["drawings"] | figures["photographs"]:
        what = "right" if name in LABELS else "error"
        values = (f"{figures[kind][name]:.3f}" if name in figures[kind] else "-" for kind in kinds)
        lines.append(f"| {name.replace('_', ' ')}, {what} | {' | '.join(values)} |")
    lines += [
        "",
        "| rank correlation with true distances | rendered | blurred or grainy | ideal reader |",
        "|---|---|---|---|",
    ]
    for name, value in figures["spearman"].items():
        lines.append(
            f"| {name} | {value:.2f} | {figures['degraded']['spearman'][name]:.2f} | {figures['ideal'][name]:.2f} |"
        )
    lines += ["", "| recognized | rendered | blurred or grainy |", "|---|---|---|"]
    for name, value in figures["recognized"].items():
        lines.append(f"| {name} | {value:.3f} | {figures['degraded']['recognized'][name]:.3f} |")
    return "\n".join(lines) + "\n"
