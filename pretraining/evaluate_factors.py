"""Measure the errors of the reader of factors on held-out things: every subject in 8 styles and in 4 photographs.

Errors are shares of right labels and mean absolute errors of numbers (hues in parts of a turn). Spearman's correlation
is that of read and true distances of the drawings to a subject or style, averaged over the subjects or styles;
"within" takes only drawings of the same class or family. Ten of the sixteen families paint in inks of their own, so
that the colors of a subject are not in the image at all; figures are also given for the other six.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from lorabench.data import microworld as mw
from lorabench.scoring import factors
from lorabench.scoring.description import FACTORS, ScorerFiles
from lorabench.scoring.factors import LABELS, Read
from lorabench.scoring.files import MICRO_SCORERS, TRUTH
from lorabench.scoring.load import load_scorer
from pretraining.card import fill
from pretraining.evaluate_scorers import CARD, PHOTO, Views, heldout_views
from pretraining.factors import degraded, targets

FIGURES = "factors.json"
COLORED = ("watercolor", "crayon", "pixel", "glass", "clay", "stitch")  # families that keep a subject's colors


def evaluate_factors(root: Path = MICRO_SCORERS) -> dict[str, Any]:
    """Write root/factors.json and its part of the model card; return the figures."""
    reader = load_scorer(ScorerFiles.of(root / TRUTH / FACTORS))
    views = heldout_views()
    found = figures_of(factors.read(reader.embed(views.images)[FACTORS]), views)
    found["degraded"] = figures_of(factors.read(reader.embed(degraded(views.images))[FACTORS]), views)
    (root / FIGURES).write_text(json.dumps(found, indent=1) + "\n")
    fill(root / CARD, FACTORS, as_markdown(found))
    return found


def figures_of(read: Read, views: Views) -> dict[str, Any]:
    """Return the errors on images, by kind of image and factor, the rank correlations, and the shares recognized."""
    photo = np.array([style == PHOTO for style in views.styles])
    colored = np.array([style.rsplit("_", 1)[0] in COLORED for style in views.styles])
    things = [
        (mw.subject(subject), None if style == PHOTO else mw.style(style), pose)
        for subject, style, pose in zip(views.subjects, views.styles, views.poses, strict=True)
    ]
    wanted = targets(things)
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
            figures["spearman"][f"{role}{kind}"] = rank(read, names, drawn, lookup, far, true, within=False)
            figures["spearman"][f"{role} within{kind}"] = rank(read, names, drawn, lookup, far, true, within=True)
    subjects = np.array(factors.recognized(read, mw.HELDOUT_SUBJECTS)) == np.array(views.subjects)
    styles = np.array(factors.recognized(read, mw.HELDOUT_STYLES)) == np.array(views.styles)
    figures["recognized"] = {
        "subject, drawings": float(subjects[~photo].mean()), "subject, photographs": float(subjects[photo].mean()),
        "style": float(styles[~photo].mean()), "both": float((subjects & styles)[~photo].mean()),
    }  # fmt: skip
    return figures


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
    read: Read, names: Sequence[str], drawn: Sequence[int], lookup: Callable, far: Callable,
    true: Callable, within: bool,
) -> float:  # fmt: skip
    """Return the mean over anchors of Spearman's correlation of read and true distances."""
    found = []
    for anchor in sorted({names[i] for i in drawn}):
        kind = anchor.rsplit("_", 1)[0]
        rows = [i for i in drawn if not within or names[i].rsplit("_", 1)[0] == kind]
        distances = [true(lookup(names[i]), lookup(anchor)) for i in rows]
        if len(set(distances)) > 1:
            found.append(spearmanr(far(read, lookup(anchor))[rows].numpy(), distances).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    return float(np.mean(found))


def as_markdown(figures: dict[str, Any]) -> str:
    """Return the generated part of the model card."""
    kinds = ("drawings", "in own colors", "photographs")
    lines = ["| read | " + " | ".join(kinds) + " |", "|---|---|---|---|"]
    for name in figures["drawings"] | figures["photographs"]:
        what = "right" if name in LABELS else "error"
        values = (f"{figures[kind][name]:.3f}" if name in figures[kind] else "-" for kind in kinds)
        lines.append(f"| {name.replace('_', ' ')}, {what} | {' | '.join(values)} |")
    lines += ["", "| rank correlation with true distances | rendered | blurred or grainy |", "|---|---|---|"]
    for name, value in figures["spearman"].items():
        lines.append(f"| {name} | {value:.2f} | {figures['degraded']['spearman'][name]:.2f} |")
    lines += ["", "| recognized | rendered | blurred or grainy |", "|---|---|---|"]
    for name, value in figures["recognized"].items():
        lines.append(f"| {name} | {value:.3f} | {figures['degraded']['recognized'][name]:.3f} |")
    return "\n".join(lines) + "\n"
