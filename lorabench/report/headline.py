"""The headline scores: are subject and style both there? They are views of stored scores.

    both(image)             = subject_r1(image) * style_r1(image)
    both_similarity(image)  = min( (c - c_base) / (c_content_only - c_base),  (s - s_base) / (s_style_only - s_base) )

`both` is 1 if the subject and the style are each recognized among all held-out ones, or among all development ones if
they are of these. Its ceiling is the value of the
oracle, because the scorers do not recognize every true image. `both_similarity` is its continuous companion: c is the
content similarity of the image and s its style similarity (`CONTENT`, `STYLE`, means over the references), scaled such
that the base model has 0 and the LoRA of that role by itself has 1. The four constants are means over the pairs; an
interval of `both_similarity` takes them as known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import pandas as pd

from lorabench.data import microworld as mw
from lorabench.report import averages
from lorabench.report.labels import BASELINES, ORACLE

BOTH, SIMILARITY = "both", "both_similarity"
RECOGNIZED = ("subject_r1", "style_r1")
CONTENT, STYLE = "dino/content", "csd/style"
BASE, *SINGLE = BASELINES  # the base model, and the rows with one LoRA
OF_METRIC = ("metric", "backbone", "role", "reference", "value", "version")
JOIN = "+"  # between the backbones of a score by two
LEAST = 0.01  # smallest distance of a single LoRA from the base model that can be a unit


def with_headline(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the rows of the headline scores that the stored ones suffice for.

    Args:
        scores: Rows of scores with a column `label`.
    """
    return pd.concat([scores, *recognized(scores), *similar(scores)], ignore_index=True)


def recognized(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the rows of `both`."""
    subject, style = (scores[scores["metric"] == metric] for metric in RECOGNIZED)
    yield from joined(subject, style, BOTH, lambda values: values.prod(axis=1))


def similar(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the rows of `both_similarity`; none if a single LoRA is not nearer to its concept than the base model."""
    scaled = []
    for metric, single in zip((CONTENT, STYLE), SINGLE, strict=True):
        rows = scores[scores["metric"] == metric]
        rows = rows[rows["backbone"] == rows["backbone"].iloc[0]] if len(rows) else rows
        if not {BASE, single} <= set(rows["label"]):
            return
        off, on = (float(averages.pair_means(rows[rows["label"] == label]).mean()) for label in (BASE, single))
        if not on - off >= LEAST:
            return
        scaled.append(rows.assign(value=(rows["value"] - off) / (on - off)))
    yield from joined(scaled[0], scaled[1], SIMILARITY, lambda values: values.min(axis=1))


def joined(
    content: pd.DataFrame, style: pd.DataFrame, metric: str, reduce: Callable[[pd.DataFrame], pd.Series]
) -> Iterator[pd.DataFrame]:
    """Yield one row per image that has a content and a style value; nothing without any.

    Args:
        content: Rows of the content metric.
        style: Rows of the style metric.
        metric: Name of the result.
        reduce: Function of the values [images, 2].
    """
    keys = [column for column in content if column not in OF_METRIC]
    values = [rows.groupby(keys, dropna=False, sort=False)["value"].mean() for rows in (content, style)]
    both = pd.concat(values, axis=1, join="inner", keys=["content", "style"])
    if both.empty:
        return
    known = [column for column in ("backbone", "version") if column in content]
    of = {each: JOIN.join(dict.fromkeys(str(rows[each].iloc[0]) for rows in (content, style))) for each in known}
    yield reduce(both).rename("value").reset_index().assign(metric=metric, role="both", reference=metric, **of)


def candidates(names: Iterable[str], heldout: Sequence[str], development: Sequence[str], noun: str) -> str:
    """Return in words among which subjects or styles these are recognized.

    >>> candidates(["mug_dev1"], ["mug_1", "cat_1"], ["mug_dev1"], "subjects")
    '1 development subjects'
    """
    tuned = [name in development for name in names]
    splits = {"held-out": (heldout, not all(tuned)), "development": (development, any(tuned))}
    return " or ".join(f"{len(known)} {split} {noun}" for split, (known, used) in splits.items() if used)


def notes(lines: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    """Return the paragraphs on the headline scores that a table shows.

    Args:
        lines: Lines of the table (report/table.py).
        scores: Scores of all runs.
    """
    found = []
    shown = lines.set_index(["metric", "label"])["mean"]
    if BOTH in shown.index.get_level_values("metric"):
        subjects = candidates(scores["content"].unique(), mw.HELDOUT_SUBJECTS, mw.DEVELOPMENT_SUBJECTS, "subjects")
        styles = candidates(scores["style"].unique(), mw.HELDOUT_STYLES, mw.DEVELOPMENT_STYLES, "styles")
        text = (
            f"{BOTH}: share of the images in which the subject and the style are both recognized, among {subjects} and "
            f"{styles}."
        )
        if (BOTH, ORACLE) in shown.index:
            text += f" Its ceiling is {shown[BOTH, ORACLE]:.3f}, the value of the {ORACLE}."
        found.append(text)
    if SIMILARITY in shown.index.get_level_values("metric"):
        found.append(
            f"{SIMILARITY}: the smaller of {CONTENT} and {STYLE} of an image, each scaled such that the base model has "
            "0 and the LoRA of that role by itself has 1 (means over the pairs)."
        )
    return found
