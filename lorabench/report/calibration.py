"""Tables and figure of a metric calibration: ranking of images, sources of variance, and failed checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lorabench.report.figures import INK, MUTED, RULE
from lorabench.report.plot_style import default_style

NAMES = {"content": "content", "style": "style", "text": "sentence"}
KINDS = {"other": "another kind", "same": "the same kind"}
SOURCES = {"content": "#3557d6", "style": "#c4541b", "rest": "#c9cbd3"}
FAILS, PASSES = "#f2c9c6", "#d7e7d4"


def write_calibration(found: pd.DataFrame, grid: tuple[int, int], photographs: int, holds: float) -> str:
    """Return the text of calibration.md.

    Args:
        found: One row per figure, metric, backbone and case (lorabench/tasks/calibration.py).
        grid: Numbers of subjects and of styles that the images were rendered from.
        photographs: Number of photographs per subject.
        holds: Smallest share of cases in which a known answer must hold.
    """
    subjects, styles = grid
    return "\n".join(
        [
            "## Order and leakage",
            "",
            *correlation_table(found),
            "",
            f"{subjects * styles} rendered images: {subjects} subjects in {styles} styles. Correlations compare a "
            "metric's values with the true similarity; they are averaged over anchors and have 95 % intervals. `within "
            "kind` uses only images of the anchor's class or family. Variance is the share of the variance of an "
            "anchor's values that content and style explain. `the factors` are the ground truth; `factors@micro` reads "
            "them from the image.",
            "",
            "## Known answers",
            "",
            *answer_table(found),
            "",
            f"Share of cases, over {subjects * styles} pairs with {photographs} photographs per subject, in which the "
            f"quantity named first is greater; **bold**: less than {holds:g}, so the check fails. `another kind`: the "
            "other images have another class and family; `the same kind`: they have the same.",
            "",
            "## Mean values",
            "",
            *value_table(found),
            "",
            *failings(found, holds),
            "",
        ]
    )


def correlation_table(found: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of the table of rank correlations and variances."""
    yield "| metric | scored by | Spearman | Kendall | Spearman within kind | variance by content | by style | rest |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    columns = [("spearman", "all"), ("kendall", "all"), ("spearman", "same kind")]
    for (metric, backbone), own in groups(found, "metric", "backbone"):
        cells = [cell(own, figure, of, spread=True) for figure, of in columns]
        cells += [cell(own, "variance", source) for source in SOURCES]
        yield f"| {metric} | {backbone} | {' | '.join(cells)} |"


def answer_table(found: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of the table of checks with known answers."""
    yield "| metric | scored by | check | another kind | the same kind |"
    yield "|---|---|---|---:|---:|"
    checks = found.query("figure == 'check' and backbone != 'the factors'")
    for (metric, backbone, of), own in groups(checks, "metric", "backbone", "of"):
        cells = [cell(own, "check", of, kind) for kind in KINDS]
        yield f"| {metric} | {backbone} | {of} | {' | '.join(cells)} |"


def value_table(found: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of the table of mean values by case."""
    values = found.query("figure == 'value' and kind == 'other'")
    cases = list(dict.fromkeys(values["of"]))
    yield f"| metric | scored by | {' | '.join(case.replace('_', ' ') for case in cases)} |"
    yield f"|---|---|{'---:|' * len(cases)}"
    for (metric, backbone), own in groups(values, "metric", "backbone"):
        yield f"| {metric} | {backbone} | {' | '.join(cell(own, 'value', case) for case in cases)} |"


def failings(found: pd.DataFrame, holds: float) -> Iterator[str]:
    """Yield the failed checks as a list, worst first."""
    failed = found.sort_values("value").loc[lambda rows: rows["passes"].map(fails)]
    if failed.empty:
        yield f"Every check holds in at least {holds:.0%} of its cases."
        return
    yield f"{len(failed)} of {found['passes'].notna().sum()} checks fail, worst first:"
    yield ""
    for row in failed.to_dict("records"):
        others = f"others of {KINDS[row['kind']]}"
        yield f"- {row['metric']} ({row['backbone']}): {row['of']} in {row['value']:.1%}, {others}"


def groups(found: pd.DataFrame, *columns: str) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """Yield (values of `columns`, rows with these values), in the order of the table."""
    for shared in pd.DataFrame(found[list(columns)]).drop_duplicates().to_dict("records"):
        same = np.logical_and.reduce([found[column] == value for column, value in shared.items()])
        yield list(shared.values()), found.loc[same]


def cell(own: pd.DataFrame, figure: str, of: str, kind: str | None = None, spread: bool = False) -> str:
    """Format one figure of a metric, optionally with its interval; empty if there is no value.

    Args:
        own: Rows of the metric.
        figure: "spearman", "kendall", "variance", "check" or "value".
        of: Value of the column `of`, such as "all" or a source of variance.
        kind: "other" or "same"; None for figures without kinds.
        spread: Append the interval.
    """
    rows = own.loc[(own["figure"] == figure) & (own["of"] == of)]
    rows = rows if kind is None else rows.loc[rows["kind"] == kind]
    if rows.empty or np.isnan(rows["value"].iloc[0]):
        return ""
    row = rows.iloc[0]
    text = f"{row['value']:.{3 if figure == 'check' else 2}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    if spread and not np.isnan(row["low"]):
        text += f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"**{text}**" if fails(row["passes"]) else text


def fails(passes: object) -> bool:
    """Return True for a failed check; other figures neither pass nor fail."""
    return passes is not None and not passes


@default_style()
def draw_calibration(found: pd.DataFrame, path: Path) -> None:
    """Plot rank correlations with intervals, sources of variance, and a colored table of the checks."""
    from matplotlib.figure import Figure

    found = found.assign(
        label=found["metric"] + "  " + found["backbone"].where(found["metric"] != found["backbone"], "")
    )
    labels = found["label"].unique().tolist()
    measured = [name for name in labels if not name.startswith("truth/")]
    checks = found.loc[found["figure"].eq("check") & found["label"].isin(measured)]
    columns = sorted(
        dict.fromkeys(zip(checks["of"], checks["kind"], strict=True)), key=lambda of: list(KINDS).index(of[1])
    )
    height = 0.42 * len(labels) + 2.6
    figure = Figure(figsize=(8.6 + 0.55 * len(columns), height), layout="constrained", facecolor="white")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[3, 3, max(3, 0.55 * len(columns))])
    y = {name: i for i, name in enumerate(labels)}

    rank = found.query("figure == 'spearman' and of == 'all'").set_index("label").reindex(labels)
    left.hlines(range(len(labels)), rank["low"], rank["high"], color=INK, linewidth=1.6, alpha=0.45)
    left.plot(rank["value"], range(len(labels)), "o", color=INK, markersize=5.5)
    left.axvline(0, color=MUTED, linewidth=0.8)
    left.set_xlim(min(-0.1, rank["low"].min()), 1.03)
    left.set_title("rank correlation with the truth", loc="left", fontsize=11)

    start = np.zeros(len(labels))
    for source, color in SOURCES.items():
        rows = found[found["figure"].eq("variance") & found["of"].eq(source)].set_index("label")["value"]
        width = rows.reindex(labels).fillna(0).to_numpy()
        middle.barh(range(len(labels)), width, left=start, color=color, height=0.62, label=source)
        start += width
    middle.set_title("variance by source", loc="left", fontsize=11)
    middle.legend(ncols=3, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.06), fontsize=9, handlelength=1)

    for row in checks.to_dict("records"):
        x = columns.index((row["of"], row["kind"]))
        color = FAILS if fails(row["passes"]) else PASSES
        right.barh(y[row["label"]], 0.94, left=x - 0.47, height=0.8, color=color)
        right.text(x, y[row["label"]], f"{row['value']:.2f}", ha="center", va="center", fontsize=9, color=INK)
    names = [f"{of.replace('_', ' ')}{'' if kind == 'other' else ' (same kind)'}" for of, kind in columns]
    right.set_xticks(range(len(columns)), names, rotation=40, ha="right", fontsize=9)
    right.set_xlim(-0.6, len(columns) - 0.4)
    right.set_title("share of cases in which a known answer holds", loc="left", fontsize=11)
    left.set_yticks(range(len(labels)), labels, fontsize=10)
    left.set_ylim(len(labels) - 0.4, -0.6)
    for panel in (left, middle, right):
        panel.tick_params(length=0, colors=INK)
        panel.spines[:].set_visible(False)
    left.grid(axis="x", color=RULE, linewidth=0.7)
    figure.savefig(path, dpi=160, metadata={"Software": None})
