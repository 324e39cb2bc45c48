"""Scores of prompts beyond what the adapters were trained on (lorabench/data/extension.py), one table per kind.

asked     CLIP-T of the image with the plain words of its prompt; higher is better
class     share of images in which the class of the prompt is recognized (ground truth of the microworld)
family    the same for the family of the style
style     similarity with the trained style: higher is better for kind I, a leak for II and III
subject   similarity with the trained subject: higher is better for kind II, a leak for I and III
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from lorabench.data.extension import EXTENSIONS
from lorabench.report import stats
from lorabench.report.cross_influence import cell
from lorabench.report.labels import label
from lorabench.report.text import escape, row

FILE, DATA = "semantic_extension.md", "semantic_extension.csv"
METRICS = {
    "asked": "clip_t", "class": "class_acc", "family": "family_acc", "style": "csd/style", "subject": "dino/content",
}  # fmt: skip
TITLES = {
    "new_content": "Kind I: new content, trained style",
    "new_style": "Kind II: trained content, new style",
    "new_both": "Kind III: new content, new style",
}
LEAKS = {"new_content": ("subject",), "new_style": ("style",), "new_both": ("style", "subject")}


def write_semantic_extension(folders: Sequence[Path], out: Path) -> None:
    """Write semantic_extension.md and .csv if the runs have images of such prompts.

    Args:
        folders: Run folders.
        out: Folder of the report.
    """
    scores = pd.concat([pd.read_parquet(folder / "scores.parquet") for folder in folders])
    if "use" not in scores or not set(EXTENSIONS) & set(scores["use"]):
        return
    found = measured(scores.drop_duplicates())
    found.to_csv(out / DATA, index=False, float_format="%.6g")
    (out / FILE).write_text(table(found), encoding="utf-8")


def measured(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per use, label and measure, by the first backbone that has the metric."""
    names = [label(*each) for each in zip(scores["method"], scores["ablation"], strict=True)]
    lines = []
    mine: Any
    for key, mine in scores.assign(label=names).groupby(["use", "label"], sort=False):
        use, name = cast(tuple[str, str], key)
        if use not in EXTENSIONS:
            continue
        for measure, metric in METRICS.items():
            rows = mine[mine["metric"] == metric]
            if rows.empty:
                continue
            at = stats.interval(stats.pair_means(rows[rows["backbone"] == rows["backbone"].iloc[0]]))
            numbers = {"mean": at.mean, "low": at.low, "high": at.high, "pairs": at.pairs}
            lines.append({"use": use, "label": name, "measure": measure, "metric": metric, **numbers})
    return pd.DataFrame(lines)


def table(found: pd.DataFrame) -> str:
    """Return one Markdown table per kind; columns that should be low are marked."""
    parts = ["# Semantic extension"]
    for use in EXTENSIONS:
        rows = found[found["use"] == use]
        if rows.empty:
            continue
        names = [name for name in METRICS if name in set(rows["measure"])]
        heads = [f"{name} ({METRICS[name]}{', lower is better' if name in LEAKS[use] else ''})" for name in names]
        lines = [row(["row", *heads]), f"|---|{'---:|' * len(names)}"]
        for name, mine in rows.groupby("label", sort=False):
            by_name = mine.set_index("measure")
            lines.append(row([escape(str(name)), *(cell(by_name.loc[each]) for each in names)]))
        parts += [f"## {TITLES[use]}", "\n".join(lines)]
    parts.append("Means over pairs with 95 % intervals.")
    return "\n\n".join(parts) + "\n"
