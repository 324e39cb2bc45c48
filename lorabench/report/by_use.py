"""Scores of images by use, one table per use: prompts beyond the training, and prompts that name one concept.

    file                    uses
    semantic_extension.md   new_content, new_style, new_both     lorabench/data/extension.py
    routing.md              content_prompt, style_prompt         lorabench/data/uses.py

    asked     CLIP-T of the image with the plain words of its prompt; higher is better
    class     share of images in which the class of the prompt is recognized (ground truth of the microworld)
    family    the same for the family of the style
    style     similarity with the trained style
    subject   similarity with the trained subject

A style or a subject that the prompt does not ask for is a leak: there, lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from lorabench.report import averages, stats
from lorabench.report.cross_influence import label_table
from lorabench.report.labels import label

METRICS = {
    "asked": "clip_t", "class": "class_acc", "family": "family_acc", "style": "csd/style", "subject": "dino/content",
}  # fmt: skip


@dataclass(frozen=True)
class UseTable:
    """One table.

    Args:
        title: Heading.
        leaks: Measures of a concept that the prompt does not ask for.
    """

    title: str
    leaks: tuple[str, ...]


REPORTS = {
    "semantic_extension": {
        "new_content": UseTable("Kind I: new content, trained style", ("subject",)),
        "new_style": UseTable("Kind II: trained content, new style", ("style",)),
        "new_both": UseTable("Kind III: new content, new style", ("style", "subject")),
    },
    "routing": {
        "content_prompt": UseTable("The prompt names the content only; all adapters are loaded", ("family", "style")),
        "style_prompt": UseTable("The prompt names the style only; all adapters are loaded", ("subject",)),
    },
}
FILES = tuple(f"{name}.{ending}" for name in REPORTS for ending in ("md", "csv"))


def write_by_use(folders: Sequence[Path], out: Path) -> None:
    """Write <report>.md and .csv for each report of which the runs have images.

    Args:
        folders: Run folders.
        out: Folder of the report.
    """
    scores = pd.concat([pd.read_parquet(folder / "scores.parquet") for folder in folders])
    for name, tables in REPORTS.items():
        if "use" in scores and set(tables) & set(scores["use"]):
            found = measured(scores.drop_duplicates(), tables)
            found.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
            (out / f"{name}.md").write_text(text(name, found), encoding="utf-8")


def measured(scores: pd.DataFrame, uses: Sequence[str] | dict[str, UseTable]) -> pd.DataFrame:
    """Return one row per use, label and measure, by the first backbone that has the metric."""
    names = [label(*each) for each in zip(scores["method"], scores["ablation"], strict=True)]
    lines = []
    mine: Any
    for key, mine in scores.assign(label=names).groupby(["use", "label"], sort=False):
        use, name = cast(tuple[str, str], key)
        if use not in uses:
            continue
        for measure, metric in METRICS.items():
            rows = mine[mine["metric"] == metric]
            if rows.empty:
                continue
            at = stats.over_pairs(averages.pair_means(rows[rows["backbone"] == rows["backbone"].iloc[0]]))
            numbers = {"mean": at.mean, "low": at.low, "high": at.high, "pairs": at.pairs}
            lines.append({"use": use, "label": name, "measure": measure, "metric": metric, **numbers})
    return pd.DataFrame(lines)


def text(name: str, found: pd.DataFrame) -> str:
    """Return one Markdown table per use of a report; columns that should be low are marked."""
    parts = [f"# {name.replace('_', ' ').capitalize()}"]
    for use, table in REPORTS[name].items():
        rows = found[found["use"] == use]
        if rows.empty:
            continue
        names = [each for each in METRICS if each in set(rows["measure"])]
        heads = {
            each: f"{each} ({METRICS[each]}{', lower is better' if each in table.leaks else ''})" for each in names
        }
        parts += [f"## {table.title}", label_table(rows, "measure", heads, "row")]
    parts.append("Means over pairs with 95 % intervals.")
    return "\n\n".join(parts) + "\n"
