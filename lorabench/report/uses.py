"""Scores by use of the images (lorabench/data/uses.py): those that tables show, and all others."""

from __future__ import annotations

import pandas as pd

from lorabench.report.labels import label

# Scores of photographs (images of the subject by itself): do they show the scene that the prompt asks for?
PHOTOGRAPHS = {"clip_t": "clip_t/photo", "ground_acc": "ground_acc"}


def shown_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores that tables show: those of joint images, and PHOTOGRAPHS under names of their own."""
    if "use" not in scores:
        return scores
    photographs = scores[(scores["use"] == "content") & scores["metric"].isin(PHOTOGRAPHS)]
    renamed = photographs.assign(metric=photographs["metric"].map(PHOTOGRAPHS))
    joint = joint_scores(scores)
    return pd.concat([joint, renamed]) if len(renamed) else joint


def joint_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of joint images."""
    return scores[scores["use"] == "joint"] if "use" in scores else scores


def other_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of other uses than joint, whose metrics are named with the use, see `protocols.in_use`."""
    others = scores.loc[scores["use"] != "joint"] if "use" in scores else scores.iloc[:0]
    return others.assign(metric=others["use"] + " " + others["metric"]) if len(others) else others


def label_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the column `label` to scores."""
    labels = [label(m, a) for m, a in zip(scores["method"], scores["ablation"], strict=True)]
    return scores.assign(label=labels)
