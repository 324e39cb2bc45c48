"""The table: a row a method between the frame rows, with 95 % intervals, costs, and what is not separated.

Under a method stands what its publication reports, marked as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

import pandas as pd

from lorabench import protocols, stats
from lorabench.config import ProtocolSpec
from lorabench.protocols import Column
from lorabench.report import published
from lorabench.report.folder import CEILING, FLOORS, FRAMES, RunFolder, join_scores, label_rows
from lorabench.report.published import Published

COSTS = {
    "learned_parameters": "learned parameters",
    "merge_seconds": "s to merge",
    "seconds_per_image": "s an image",
}
BASELINE = "direct"


@dataclass(frozen=True)
class Table:
    """What is shown of one or several runs, whatever the format.

    lines: as `summary` makes them; `metric` is the name of a column.  spent: as `costs` makes them.
    reported: by label, the publications' rows.  notes: paragraphs under the table.
    """

    lines: pd.DataFrame
    spent: pd.DataFrame
    reported: dict[str, list[Published]]
    notes: list[str]

    @classmethod
    def of(cls, runs: list[RunFolder], protocol: ProtocolSpec = protocols.ALL) -> Table:
        """Raises UserError where the runs cannot be compared, or have no score that the protocol shows."""
        scores = join_scores(runs)
        columns, said = protocols.columns(protocol, scores)
        lines = summary(scores, columns)
        reported = published.published(runs, columns, protocol.arxiv)
        notes = [*footnotes(lines, scores, columns), *said]
        if reported:
            notes.append(published.footnote(runs, lines, protocol.arxiv))
        return cls(lines, costs(runs), reported, notes)

    @property
    def labels(self) -> list[str]:
        return list(self.lines["label"].unique())

    @property
    def backbones(self) -> dict[str, str]:
        """Metric -> who scored it, in the order of the columns."""
        return dict(zip(self.lines["metric"], self.lines["backbone"], strict=True))


def row_order(labels: list[str]) -> list[str]:
    """Floors first, then the methods as they come, the ceiling last."""
    unique = list(dict.fromkeys(labels))
    methods = [name for name in unique if name not in FRAMES]
    return [f for f in FLOORS if f in unique] + methods + [CEILING] * (CEILING in unique)


def summary(scores: pd.DataFrame, columns: list[Column]) -> pd.DataFrame:
    """Scores of one or several methods -> one line a row and column.

    Columns: label, metric (the column's name), backbone, digits, mean, low, high, pairs, images, and of each method
    the paired difference to `direct` (difference, difference_low, difference_high, separated); that is missing for
    the frames, for `direct` itself, and when there is no `direct` to compare with on at least two pairs.
    """
    scores = label_rows(scores)
    by_label = dict(iter(scores.groupby("label", sort=False)))
    images = {
        (name, column.name): protocols.image_values(rows, column)
        for name, rows in by_label.items()
        for column in columns
    }
    lines = []
    for name in row_order(scores["label"].unique().tolist()):
        for column in columns:
            if (own := images[name, column.name]).empty:
                continue
            at = stats.mean(own, *column.rule)
            line = {
                "label": name,
                "metric": column.name,
                "backbone": column.backbone,
                "digits": column.digits,
                "mean": at.mean,
                "low": at.low,
                "high": at.high,
                "pairs": at.pairs,
                "images": len(own),
            }
            baseline = images.get((BASELINE, column.name))
            if baseline is not None and not baseline.empty and name not in (BASELINE, *FRAMES):
                delta = stats.difference(own, baseline, *column.rule)
                if not isnan(delta.low):  # a pair or none in common tells nothing apart, nor together
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


def write_csv(table: Table) -> str:
    """One row a method: <metric>, <metric>_low, <metric>_high, then the costs; what is reported is named so."""
    wide = pd.DataFrame(index=pd.Index(table.labels, name="method"))
    for metric, column in table.lines.groupby("metric", sort=False):
        by_label = column.set_index("label")
        wide[metric], wide[f"{metric}_low"], wide[f"{metric}_high"] = (by_label[c] for c in ("mean", "low", "high"))
    wide = wide.join(table.spent)
    rows: dict[str, dict[str, float]] = {}
    for name in table.labels:
        rows[name] = wide.loc[name].to_dict()
        rows |= {f"{published.MARK} {name} {own.text}": own.values for own in table.reported.get(name, [])}
    return pd.DataFrame(list(rows.values()), list(rows), wide.columns).to_csv(float_format="%.6g", index_label="method")


def write_markdown(table: Table) -> str:
    """The table for people, with footnotes that say who scored and what the marks mean."""
    rows = {(line["label"], line["metric"]): line for line in table.lines.to_dict("records")}
    metrics, spent = list(table.backbones), table.spent
    text = [
        "| " + " | ".join(["method", *metrics, *(COSTS[c] for c in spent)]) + " |",
        "|---|" + "---:|" * (len(metrics) + spent.shape[1]),
    ]
    for name in table.labels:
        cells = [format_score(rows.get((name, metric))) for metric in metrics]
        cells += [format_cost(spent, name, c) for c in spent]
        text.append("| " + " | ".join([escape(name), *cells]) + " |")
        for own in table.reported.get(name, []):
            cells = [f"*{value}*" if (value := format_reported(own, metric)) else "" for metric in metrics]
            title = escape(f"{published.MARK} {own.text}")
            text.append("| " + " | ".join([title, *cells, *[""] * spent.shape[1]]) + " |")
    return "\n".join(text) + "\n\n" + "\n\n".join(table.notes) + "\n"


def escape(text: str) -> str:
    """Text as a cell of a markdown table.

    >>> escape("a|b <i>")
    'a\\\\|b \\\\<i>'
    """
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


def format_score(line: dict | None) -> str:
    if line is None:
        return ""
    mean, low, high = (f"{line[part]:.{line['digits']}f}" for part in ("mean", "low", "high"))
    text = mean if isnan(line["low"]) else f"{mean} [{low}, {high}]"  # a single pair has no interval
    return text + (" ~" if line.get("separated") is False else "")


def format_cost(spent: pd.DataFrame, name: str, cost: str) -> str:
    value = spent[cost].get(name)
    if value is None or value != value:
        return ""
    return f"{value:,.0f}".replace(",", " ") if cost == "learned_parameters" else f"{value:.3g}"


def format_reported(own: Published, metric: str) -> str:
    """A publication's number with the digits that it gives."""
    return f"{own.values[metric]:g}" if metric in own.values else ""


def footnotes(lines: pd.DataFrame, scores: pd.DataFrame, columns: list[Column]) -> list[str]:
    """Paragraphs under the table."""
    pairs, backbones = lines["pairs"].tolist(), list(dict.fromkeys(lines["backbone"]))
    rules = {column.rule[0] for column in columns}
    order = "; averaged by reference, image, pair in this order" if rules == {"pair"} else ""
    images = f"{span(lines['images'].tolist())} images a row{order}"
    notes = [f"Mean over {span(pairs)} pairs ({images}) with the 95 % interval of a bootstrap over pairs."]
    if max(pairs) == 1:
        notes = [f"Of one pair ({images}), which has no interval; take 6 or more."]
    elif min(pairs) < 6:
        notes[0] += f" With {min(pairs)} pairs the interval is at most their range and too narrow; take 6 or more."
    used = {(column.spec.metric, column.backbone) for column in columns}
    shown = [of in used for of in zip(scores["metric"], scores["backbone"], strict=True)]
    cells = scores[shown].groupby(["metric", "label"])[stats.PAIR]
    covered = cells.apply(lambda pairs: frozenset(pairs.drop_duplicates().itertuples(index=False, name=None)))
    if any(covered.groupby(level="metric").nunique() > 1):
        notes[0] += " Not all rows average over the same pairs: their means cannot be compared."
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


def span(counts: list[int]) -> str:
    """The count, or from least to greatest where rows differ.

    >>> span([4, 4]), span([4, 2])
    ('4', '2 to 4')
    """
    least, greatest = min(counts), max(counts)
    return str(least) if least == greatest else f"{least} to {greatest}"
