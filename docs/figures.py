"""Figures in prose: a number, followed by a comment that names its place in docs/results/.

    DuoLoRA reaches 0.766<!-- all_methods/scores: duolora dino/content / mean --> in content

The comment has the folder and file (without .csv), the key of the line (its first columns, joined by spaces), and the
column. The generator replaces the number and keeps its number of decimals and a leading plus. Readers of the rendered
page see the number only.
"""

from __future__ import annotations

import re
from functools import cache

import pandas as pd
import result_files

FIGURE = re.compile(r"([-+]?\d+(?:\.\d+)?)<!-- ([\w.]+)/([\w.]+): (.+?) / (\w+) -->")


def with_figures(page: str) -> str:
    """Return a page with the numbers of docs/results/."""
    return FIGURE.sub(lambda match: formatted(match[1], value(*match.groups()[1:])) + match[0][len(match[1]) :], page)


def formatted(old: str, new: float) -> str:
    """Format a number like the one that it replaces.

    >>> formatted("+0.12", 0.256), formatted("7", 8.0)
    ('+0.26', '8')
    """
    decimals = len(old.partition(".")[2])
    return f"{new:{'+' if old.startswith('+') else ''}.{decimals}f}"


@cache
def value(name: str, file: str, key: str, column: str) -> float:
    """Return a number of a result file.

    Raises:
        SystemExit: If the file, the line or the column does not exist.
    """
    path = result_files.FOLDER / name / f"{file}.csv"
    place = f"the figure {name}/{file}: {key} / {column}"
    if not path.is_file():
        raise SystemExit(f"error: {place} has no file {path.name}; use python docs/generate.py --from outputs/{name}")
    table = pd.read_csv(path)
    names = table.iloc[:, 0].astype(str)
    for count in range(1, table.shape[1]):
        found = table[names == key]
        if len(found) == 1 and column in table:
            return float(found[column].iloc[0])
        names = names + " " + table.iloc[:, count].astype(str)
    raise SystemExit(f"error: {place} does not exist")
