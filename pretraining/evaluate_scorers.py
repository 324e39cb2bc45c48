"""Evaluate the micro scorers on held-out subjects and styles: retrieval, and rank correlation with true distances.

Retrieval at 1: the nearest other image shows the same subject (style). Images in the query's own style (of its own
subject) are excluded, so that the match must be across styles (subjects). Spearman's correlation is computed between
cosine and negative true distance of all pairs of images across styles (subjects); "within" uses only pairs of
different individuals of one class (family), which are harder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.scoring.clip import Clip
from lorabench.scoring.cosine import cosine_matrix, leave_group_out_r1
from lorabench.scoring.load import load_scorers
from lorabench.scoring.scorer import Scorer
from lorabench.scoring.truth import CONTENT, PHOTO, STYLE, Truth, load_truth
from pretraining.card import fill
from pretraining.scorer_losses import distance_matrix

STYLES_A_SUBJECT, PHOTOS_A_SUBJECT = 8, 4
FIGURES, CARD = "figures.json", "README.md"


@dataclass(frozen=True)
class Views:
    """Images [n, 64, 64, 3] with names of held-out subjects and styles ("photo" for a photograph), and poses."""

    images: np.ndarray
    subjects: list[str]
    styles: list[str]
    poses: list[mw.Pose]

    def only(self, photographs: bool) -> Views:
        """Return only the photographs, or only the others."""
        rows = [i for i, style in enumerate(self.styles) if (style == PHOTO) == photographs]
        subjects, styles = [self.subjects[i] for i in rows], [self.styles[i] for i in rows]
        return Views(self.images[rows], subjects, styles, [self.poses[i] for i in rows])


def heldout_views() -> Views:
    """Return each held-out subject in 8 held-out styles, all used equally often, and in 4 photographs."""
    images, subjects, styles, poses = [], [], [], []
    for k, name in enumerate(mw.HELDOUT_SUBJECTS):
        rng = np.random.default_rng(seed_of("scorer evaluation", name))
        offset = k * STYLES_A_SUBJECT
        turn = np.random.default_rng(seed_of("styles", offset // len(mw.HELDOUT_STYLES)))
        order = turn.permutation(mw.HELDOUT_STYLES)
        chosen = [str(order[(offset + j) % len(order)]) for j in range(STYLES_A_SUBJECT)]
        for style in [*chosen, *[PHOTO] * PHOTOS_A_SUBJECT]:
            look = None if style == PHOTO else mw.style(style)
            poses.append(mw.sample_pose(rng))
            images.append(mw.render(mw.subject(name), look, poses[-1]))
            subjects.append(name)
            styles.append(style)
    return Views(np.stack(images), subjects, styles, poses)


def codes(names: Sequence[str]) -> torch.Tensor:
    """Return integer labels [n] that are equal for equal names."""
    return torch.tensor(np.unique(np.array(names), return_inverse=True)[1])


def rank_correlation(unit: torch.Tensor, distances: torch.Tensor, usable: torch.Tensor) -> float:
    """Return Spearman's correlation of cosine and negative true distance, over usable pairs [n, n]."""
    chosen = torch.triu(usable & ~torch.isnan(distances), diagonal=1)
    cosine, closeness = cosine_matrix(unit, unit)[chosen].numpy(), -distances[chosen].numpy()
    return float(np.corrcoef(rankdata(cosine), rankdata(closeness))[0, 1])


def role_figures(unit: torch.Tensor, views: Views, role: str) -> dict[str, float]:
    """Return the figures of one embedding [n, d] for one role."""
    if role == "content":
        labels, groups, kinds = views.subjects, views.styles, [mw.kind_of(name) for name in views.subjects]
        distances = distance_matrix([mw.subject(name) for name in labels], mw.content_distance)
    else:
        labels, groups, kinds = views.styles, views.subjects, [mw.kind_of(name) for name in views.styles]
        distances = distance_matrix([mw.style(name) for name in labels], mw.style_distance)
    label, group, kind = codes(labels), codes(groups), codes(kinds)
    across = group[:, None] != group[None, :]
    within = across & (kind[:, None] == kind[None, :]) & (label[:, None] != label[None, :])
    return {
        "r1": leave_group_out_r1(unit, label, group),
        "spearman": rank_correlation(unit, distances, across),
        "spearman_within": rank_correlation(unit, distances, within),
    }


def photo_r1(drawn: torch.Tensor, drawings: Views, photographed: torch.Tensor, photographs: Views) -> float:
    """Return the share of drawings whose subject has the highest mean cosine over its photographs, as in tables."""
    similarity = cosine_matrix(drawn, photographed)
    means = torch.stack(
        [similarity[:, [s == name for s in photographs.subjects]].mean(dim=1) for name in mw.HELDOUT_SUBJECTS], dim=1
    )
    best = means.argmax(dim=1).tolist()
    return float(np.mean([mw.HELDOUT_SUBJECTS[i] == s for i, s in zip(best, drawings.subjects, strict=True)]))


def truth_figures(truth: Truth, scorers: Sequence[Scorer], views: Views) -> dict[str, float]:
    """Return the accuracy of class, family and nearest prototype, for drawings and photographs."""
    embeddings = {s.name: s.embed(views.images) for s in scorers if s.name in (CONTENT[0], STYLE[0])}
    read = truth.read(embeddings)
    photo = np.array([style == PHOTO for style in views.styles])
    subjects, styles = np.array(views.subjects), np.array(views.styles)
    classes = np.array([mw.kind_of(name) for name in views.subjects])
    families = np.array([mw.kind_of(name) for name in views.styles])  # "photo" stays "photo"
    figures = {}
    for name, right in (("class", classes), ("subject", subjects)):
        hit = np.array(read[name]) == right
        figures |= {f"{name}_drawings": float(hit[~photo].mean()), f"{name}_photographs": float(hit[photo].mean())}
    hit = np.array(read["family"]) == families
    figures |= {"family_drawings": float(hit[~photo].mean()), "family_photographs": float(hit[photo].mean())}
    figures["style_drawings"] = float((np.array(read["style"]) == styles)[~photo].mean())
    return figures


def text_figures(clip: Clip, drawings: Views) -> dict[str, float]:
    """Return how often the nearest of all sentences "a <class> in <family> style" has the right class and family."""
    sentences = [(c, f) for c in mw.CLASSES for f in mw.FAMILIES]
    texts = clip.embed_text([f"a {c} in {f} style" for c, f in sentences])
    best = cosine_matrix(clip.embed(drawings.images)["content"], texts).argmax(dim=1).tolist()
    right = [
        (sentences[i][0] == mw.kind_of(subject), sentences[i][1] == mw.kind_of(style))
        for i, subject, style in zip(best, drawings.subjects, drawings.styles, strict=True)
    ]
    both = np.array(right)
    return {"class": float(both[:, 0].mean()), "family": float(both[:, 1].mean()), "both": float(both.all(1).mean())}


def figures_of(scorers: Sequence[Scorer], truth: Truth) -> dict[str, Any]:
    """Return all figures, by metric and role."""
    views = heldout_views()
    drawings, photographs = views.only(photographs=False), views.only(photographs=True)
    figures: dict[str, Any] = {"world": mw.VERSION, "pictures": len(views.subjects), "retrieval": {}, "truth": {}}
    for scorer in scorers:
        drawn, photographed = scorer.embed(drawings.images), scorer.embed(photographs.images)
        for role in scorer.roles:
            result = role_figures(drawn[role], drawings, role)
            if role == "content":
                result["photo_r1"] = photo_r1(drawn[role], drawings, photographed[role], photographs)
            figures["retrieval"][f"{scorer.metric}/{role}"] = result
        if isinstance(scorer, Clip):
            figures["clip_t"] = text_figures(scorer, drawings)
    figures["truth"] = truth_figures(truth, scorers, views)
    return figures


def as_markdown(figures: dict[str, Any]) -> str:
    """Return the generated part of the model card."""
    lines = [
        f"On {figures['pictures']} pictures of the {len(mw.HELDOUT_SUBJECTS)} held-out subjects in the "
        f"{len(mw.HELDOUT_STYLES)} held-out styles (world {figures['world']}):",
        "",
        "| score | R@1 | R@1 to photographs | Spearman with truth | within class or family |",
        "|---|---|---|---|---|",
    ]
    for name, f in figures["retrieval"].items():
        photo = f"{f['photo_r1']:.2f}" if "photo_r1" in f else "-"
        lines.append(f"| {name} | {f['r1']:.2f} | {photo} | {f['spearman']:.2f} | {f['spearman_within']:.2f} |")
    t, c, count = figures["truth"], figures["clip_t"], len(mw.HELDOUT_SUBJECTS)
    lines += [
        "",
        "| read off | drawings | photographs |",
        "|---|---|---|",
        f"| class (dino) | {t['class_drawings']:.2f} | {t['class_photographs']:.2f} |",
        f"| subject of {count} (dino) | {t['subject_drawings']:.2f} | {t['subject_photographs']:.2f} |",
        f"| family or photograph (csd) | {t['family_drawings']:.2f} | {t['family_photographs']:.2f} |",
        f"| style of {len(mw.HELDOUT_STYLES)} (csd) | {t['style_drawings']:.2f} | - |",
        "",
        f"Nearest of {len(mw.CLASSES) * len(mw.FAMILIES)} sentences (clip_t): class {c['class']:.2f}, "
        f"family {c['family']:.2f}, both {c['both']:.2f}.",
    ]
    return "\n".join(lines) + "\n"


def evaluate_scorers(root: Path) -> dict[str, Any]:
    """Write root/figures.json and the generated part of the model card, if there is one; return the figures."""
    scorers = load_scorers(root)
    figures = figures_of(scorers, load_truth(scorers, root).among("heldout"))
    (root / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")
    fill(root / CARD, "figures", as_markdown(figures))
    return figures
