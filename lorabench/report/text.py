"""table.md for reading and table.csv for further processing."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lorabench.report import published
from lorabench.report.layout import Line, blocks, notes
from lorabench.report.table import Table

# Columns of the csv, named <metric>_<suffix>; the mean is named <metric>.
SUFFIXES = [
    "mean", "low", "high", "bca_low", "bca_high", "pairs", "contents", "styles",
    "difference", "difference_low", "difference_high", "p",
    "shared_pairs", "shared_images", "p_holm", "rank", "rank_low", "rank_high",
]  # fmt: skip
STANDING = "reported"  # column that states how comparable a publication's row is


def write_csv(table: Table) -> str:
    """Return one csv row per method: <metric>, <metric>_<suffix> for SUFFIXES, costs; reported rows are marked."""
    wide = pd.DataFrame(index=pd.Index(table.labels, name="method"))
    for metric, column in table.lines.groupby("metric", sort=False):
        named = {suffix: str(metric) if suffix == "mean" else f"{metric}_{suffix}" for suffix in SUFFIXES}
        wide = wide.join(pd.DataFrame(column.set_index("label")[SUFFIXES]).rename(columns=named))
    wide = wide.join(table.spent)
    rows: dict[str, dict[str, Any]] = {}
    for name in table.labels:
        rows[name] = wide.loc[name].to_dict()
        for own in table.reported.get(name, []):
            rows[f"{published.MARK} {name} {own.text}"] = {**own.values, STANDING: own.standing}
    columns = [*wide, *([STANDING] if table.reported else [])]
    return pd.DataFrame(list(rows.values()), list(rows), columns).to_csv(float_format="%.6g", index_label="method")


def write_markdown(table: Table) -> str:
    """Return scores, differences and ranks as markdown tables, followed by the notes."""
    text = []
    for block in blocks(table):
        lines = [
            row(block.head),
            "|---|" + "---:|" * (len(block.head) - 1),
            *(row(cells(line)) for line in block.lines),
        ]
        text += [*([f"**{escape(block.title)}**"] if block.title else []), "\n".join(lines)]
    return "\n\n".join([*text, *notes(table)]) + "\n"


def cells(line: Line) -> list[str]:
    """Return the escaped cells of a line; numbers that publications report are set in italics."""
    name, *numbers = map(escape, line.cells)
    return [name, *(f"*{number}*" if number and line.kind == "reported" else number for number in numbers)]


def row(texts: list[str]) -> str:
    """Return a row of a markdown table."""
    return "| " + " | ".join(texts) + " |"


def escape(text: str) -> str:
    """Escape text for a cell of a markdown table.

    >>> escape("a|b <i>")
    'a\\\\|b \\\\<i>'
    """
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")
