"""Check that the scores of a set of images are complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorabench.data.concepts import ROLES
from lorabench.scoring import factor_rows
from lorabench.scoring.copying import COPY, DIVERSITY, KIND
from lorabench.scoring.rows import KEYS, UNIQUE, ScoredImage, ScoreRow
from lorabench.scoring.truth import CONTENT, STYLE

# Scores that need the factors of a concept.
READOUT = {"content": {"class_acc", "subject_r1"}, "style": {"family_acc", "style_r1"}}
KNOWN = {"content": READOUT["content"] | {factor_rows.CONTENT}, "style": READOUT["style"] | {factor_rows.STYLE}}


def expected_scores(metrics: Mapping[str, Sequence[str]], truth: bool, factors: bool = False) -> set[tuple[str, str]]:
    """Return the metric and backbone of every score that an image of the microworld gets.

    Args:
        metrics: Metrics of each scorer, by the scorer's name.
        truth: Whether the readout of the microworld is used.
        factors: Whether the network that reads its factors is used.
    """
    expected = {(metric, name) for name, each in metrics.items() for metric in each}
    copied = [name for name, each in metrics.items() if f"{KIND}/content" in each]
    expected |= {(metric, name) for name in copied for metric in (*COPY.values(), DIVERSITY)}
    if factors:
        expected |= {(metric, factor_rows.BACKBONE) for metric in (factor_rows.CONTENT, factor_rows.STYLE)}
    if truth and {CONTENT[0], STYLE[0]} <= set(metrics):
        names = (CONTENT[0], STYLE[0]) if not factors else (factor_rows.BACKBONE,) * 2
        expected |= {(metric, name) for role, name in zip(ROLES, names, strict=True) for metric in READOUT[role]}
    return expected


def check_unique(rows: Sequence[ScoreRow]) -> None:
    """Raise RuntimeError if a value was computed twice for the same image, metric and reference."""
    seen = set()
    for r in rows:
        key = tuple(r.get(column) for column in UNIQUE)
        if key in seen:
            raise RuntimeError(f"scored twice: {dict(zip(UNIQUE, key, strict=True))}")
        seen.add(key)


def check_rows(rows: Sequence[ScoreRow], images: Sequence[ScoredImage], expected: set[tuple[str, str]]) -> None:
    """Raise RuntimeError unless rows are unique and every image has its expected scores.

    Args:
        rows: Rows of scores.
        images: Images that the rows belong to.
        expected: Metric and backbone of every score, from `expected_scores`. Scores from the factors of the microworld
            are expected only of pairs of one content and one style whose factors are known.
    """
    check_unique(rows)
    found: dict[tuple, set[tuple[str, str]]] = {}
    for r in rows:
        found.setdefault(tuple(r.get(key) for key in KEYS), set()).add((r["metric"], r["backbone"]))
    for image in images:
        known = image.known()
        lacking = impossible(image, images)
        needed = {(metric, backbone) for metric, backbone in expected if metric not in lacking}
        missing = needed - found.get(tuple(known.get(key) for key in KEYS), set())
        if missing:
            names = ", ".join(f"{metric} by {backbone}" for metric, backbone in sorted(missing))
            raise RuntimeError(f"image {known.get('image')} of {image.pair.name} lacks {names}")


def impossible(image: ScoredImage, images: Sequence[ScoredImage]) -> set[str]:
    """Return the metrics that an image cannot have."""
    pair, lacking = image.pair, set()
    for role in ROLES:
        concepts = pair.of(role)
        if not pair.is_single or concepts[0].factors is None:
            lacking |= KNOWN[role]
    lacking |= {COPY[role] for role in ROLES if not any(concept.images for concept in pair.of(role))}
    alike = [other for other in images if other.pair is pair and other.keys["prompt"] == image.keys["prompt"]]
    return lacking | ({DIVERSITY} if len(alike) < 2 else set())
