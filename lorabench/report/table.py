"""The table: a row a method between the frame rows, with 95 % intervals, costs, and what is not separated."""

from __future__ import annotations

import pandas as pd

from lorabench import stats
from lorabench.report.folder import CEILING, FLOORS, FRAMES, RunFolder, label_rows, metric_order

COSTS = {
    "learned_parameters": "learned parameters",
    "merge_seconds": "s to merge",
    "seconds_per_image": "s an image",
}
BASELINE = "direct"


def row_order(labels: list[str]) -> list[str]:
    """Floors first, then the methods as they come, the ceiling last."""
    unique = list(dict.fromkeys(labels))
    methods = [name for name in unique if name not in FRAMES]
    return [f for f in FLOORS if f in unique] + methods + [CEILING] * (CEILING in unique)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of one or several methods -> one line a row and metric.

    Columns: label, metric, backbone, mean, low, high, pairs, images, and of each method the paired difference
    to `direct` (difference, difference_low, difference_high, separated); that is missing for the frames, for
    `direct` itself, and when there is no `direct` to compare with.
    """
    scores = label_rows(scores)
    groups = dict(iter(scores.groupby(["label", "metric"], sort=False)))
    lines = []
    for name in row_order(scores["label"].tolist()):
        for metric in metric_order(scores["metric"].unique().tolist()):
            if (rows := groups.get((name, metric))) is None:
                continue
            at = stats.mean(rows)
            line = {
                "label": name,
                "metric": metric,
                "backbone": rows["backbone"].iloc[0],
                "mean": at.mean,
                "low": at.low,
                "high": at.high,
                "pairs": at.pairs,
                "images": len(stats.image_means(rows)),
            }
            baseline = groups.get((BASELINE, metric))
            if baseline is not None and name not in (BASELINE, *FRAMES):
                delta = stats.difference(rows, baseline)
                line |= {
                    "difference": delta.mean,
                    "difference_low": delta.low,
                    "difference_high": delta.high,
                    "separated": delta.separated,
                }
            lines.append(line)
    return pd.DataFrame(lines)


def costs(runs: list[RunFolder]) -> pd.DataFrame:
    """Costs by label, averaged over the runs (seeds) of a method; the columns of COSTS that any run has."""
    rows = pd.DataFrame([{"label": run.label, **run.manifest.get("costs", {})} for run in runs])
    known = rows[["label", *(c for c in COSTS if c in rows)]]
    return pd.DataFrame(known.groupby("label", sort=False).mean())


def write_csv(lines: pd.DataFrame, spent: pd.DataFrame) -> str:
    """One row a method: <metric>, <metric>_low, <metric>_high, then the costs."""
    wide = pd.DataFrame(index=pd.Index(lines["label"].unique(), name="method"))
    for metric, column in lines.groupby("metric", sort=False):
        by_label = column.set_index("label")
        wide[metric], wide[f"{metric}_low"], wide[f"{metric}_high"] = (by_label[c] for c in ("mean", "low", "high"))
    return wide.join(spent).to_csv(float_format="%.6g")


def write_markdown(lines: pd.DataFrame, spent: pd.DataFrame) -> str:
    """The table for people, with footnotes that say who scored and what the marks mean."""
    metrics = list(lines["metric"].unique())
    rows = {(line["label"], line["metric"]): line for line in lines.to_dict("records")}
    text = [
        "| " + " | ".join(["method", *metrics, *(COSTS[c] for c in spent)]) + " |",
        "|---|" + "---:|" * (len(metrics) + spent.shape[1]),
    ]
    for name in lines["label"].unique():
        cells = [format_score(rows.get((name, metric))) for metric in metrics]
        cells += [format_cost(spent, name, c) for c in spent]
        text.append("| " + " | ".join([name.replace("|", "\\|"), *cells]) + " |")
    return "\n".join(text) + "\n\n" + "\n\n".join(footnotes(lines)) + "\n"


def format_score(line: dict | None) -> str:
    if line is None:
        return ""
    text = f"{line['mean']:.3f}"
    if line["low"] == line["low"]:  # a single pair has no interval
        text += f" [{line['low']:.3f}, {line['high']:.3f}]"
    return text + (" ~" if line.get("separated") is False else "")


def format_cost(spent: pd.DataFrame, name: str, cost: str) -> str:
    value = spent[cost].get(name)
    if value is None or value != value:
        return ""
    return f"{value:,.0f}".replace(",", " ") if cost == "learned_parameters" else f"{value:.3g}"


def footnotes(lines: pd.DataFrame) -> list[str]:
    """Paragraphs under the table."""
    pairs, images = max(lines["pairs"]), max(lines["images"])
    backbones = list(dict.fromkeys(lines["backbone"]))
    notes = [
        f"Mean over {pairs} pairs ({images} images a row; averaged by reference, image, pair in this order) "
        "with the 95 % interval of a bootstrap over pairs."
    ]
    if pairs < 6:
        notes[0] += f" With {pairs} pairs the interval is at most their range and too narrow; take 6 or more."
    notes.append(f"Scored by {', '.join(backbones)}.")
    if any(name.endswith("@micro") for name in backbones):
        notes[1] += (
            " These are small scorers trained on the microworld: "
            "their numbers must not be put beside those of the real backbones."
        )
    if any(line.get("separated") is False for line in lines.to_dict("records")):
        notes.append(
            f"~ not separated from {BASELINE}: "
            "the interval of the difference, paired by (pair, prompt, seed), holds zero."
        )
    return notes
