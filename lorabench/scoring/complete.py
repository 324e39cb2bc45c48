"""Check that the scores of a set of images are complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorabench.scoring.rows import KEYS, UNIQUE, ScoredImage, ScoreRow
from lorabench.scoring.truth import CONTENT, STYLE

CONTENT_TRUTH = {("class_acc", CONTENT[0]), ("subject_r1", CONTENT[0])}
STYLE_TRUTH = {("family_acc", STYLE[0]), ("style_r1", STYLE[0])}


def expected_scores(metrics: Mapping[str, Sequence[str]], truth: bool) -> set[tuple[str, str]]:
    """Return the metric and backbone of every score that an image of the microworld gets.

    Args:
        metrics: Metrics of each scorer, by the scorer's name.
        truth: Whether the readout of the microworld is used.
    """
    expected = {(metric, name) for name, each in metrics.items() for metric in each}
    return expected | CONTENT_TRUTH | STYLE_TRUTH if truth and {CONTENT[0], STYLE[0]} <= set(metrics) else expected


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
        known, pair = image.known(), image.pair
        needed = set(expected)
        if not pair.is_single or pair.contents[0].factors is None:
            needed -= CONTENT_TRUTH
        if not pair.is_single or pair.styles[0].factors is None:
            needed -= STYLE_TRUTH
        missing = needed - found.get(tuple(known.get(key) for key in KEYS), set())
        if missing:
            names = ", ".join(f"{metric} by {backbone}" for metric, backbone in sorted(missing))
            raise RuntimeError(f"image {known.get('image')} of {pair.name} lacks {names}")
