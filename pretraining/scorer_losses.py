"""Losses of the micro scorers, and the true factors for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from lorabench.data import microworld as mw
from lorabench.data.microworld.factors import MARKS

T = TypeVar("T")


def supervised_contrastive(embeddings: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return SupCon, L_out in eq. 2 of arXiv 2004.11362, for unit rows [n, d]; rows without a positive are skipped."""
    itself = torch.eye(len(labels), dtype=torch.bool)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, -math.inf)
    log_prob = logits - logits.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    count = positive.sum(dim=1)
    per_row = -log_prob.masked_fill(~positive, 0.0).sum(dim=1) / count.clamp_min(1)
    return per_row[count > 0].mean()


def image_text_contrastive(
    image: torch.Tensor, text: torch.Tensor, same: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return CLIP's symmetric loss with several positives for unit rows [n, d]. same [n, n]: texts are equal."""
    logits = scale * image @ text.T
    target = same.float() / same.sum(dim=1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def disagreement(embeddings: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """Return 1 + Pearson's correlation of cosine and true distance over pairs whose distance is not NaN or 0.

    It does not depend on scale and offset, so it ranks similar things without working against the contrastive loss.
    """
    chosen = torch.triu(~torch.isnan(distances) & (distances > 0), diagonal=1)
    cosine, distance = (embeddings @ embeddings.T)[chosen], distances[chosen]
    cosine, distance = cosine - cosine.mean(), distance - distance.mean()
    return 1 + (cosine * distance).sum() / (cosine.norm() * distance.norm()).clamp_min(1e-8)


def distance_matrix(things: Sequence[T | None], distance: Callable[[T, T], float]) -> torch.Tensor:
    """Return true distances [n, n] in float32, NaN for None (a photograph's style). Each pair is computed once."""
    first = {id(thing): i for i, thing in enumerate(things)}
    distinct = sorted(first.values())
    small = np.full((len(distinct), len(distinct)), np.nan, np.float32)
    for a, i in enumerate(distinct):
        for b, j in enumerate(distinct[:a]):
            x, y = things[i], things[j]
            if x is not None and y is not None:
                small[a, b] = small[b, a] = distance(x, y)
        if things[i] is not None:
            small[a, a] = 0.0
    at = {i: a for a, i in enumerate(distinct)}
    rows = [at[first[id(thing)]] for thing in things]
    return torch.from_numpy(small[np.ix_(rows, rows)])


def subject_targets(subjects: Sequence[mw.Subject]) -> torch.Tensor:
    """Return a subject as numbers [n, 18] in about [-1, 1]: shape 3, body 3, accent 3, mark 6 (one-hot) and color 3."""
    rows = []
    for s in subjects:
        mark_rgb = s.body.rgb if s.mark == "plain" else s.mark_color.rgb
        one_hot = [float(s.mark == m) for m in MARKS]
        rows.append([*s.shape, *s.body.rgb, *s.accent.rgb, *one_hot, *mark_rgb])
    return torch.tensor(np.array(rows, np.float32)) * 2 - 1


def style_targets(styles: Sequence[mw.Style | None]) -> torch.Tensor:
    """Return a style as numbers [n, 7]: both hues as (cos, sin), scale, weight, ground; NaN for a photograph."""
    rows = []
    for s in styles:
        if s is None:
            rows.append([math.nan] * 7)
            continue
        turns = [f(2 * math.pi * hue) for hue in (s.hue, s.hue2) for f in (math.cos, math.sin)]
        rows.append([*turns, *(2 * v - 1 for v in (s.scale, s.weight, s.ground))])
    return torch.tensor(np.array(rows, np.float32))


def masked_mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error over entries of target [n, k] that are not NaN."""
    known = ~torch.isnan(target)
    return F.mse_loss(prediction[known], target[known])
