"""Figures and verdicts in prose: a number or words, followed by a comment that names their place in docs/results/.

    DuoLoRA reaches 0.766<!-- all_methods/scores: duolora dino/content / mean --> in content
    DuoLoRA above the direct merge: **holds**<!-- all_methods/scores: duolora dino/content / verdict -->

The comment has the folder and file (without .csv), the key of the line (its first columns, joined by spaces), and the
column. The generator replaces the number and keeps its number of decimals and a leading plus; differences always have a
sign. A verdict is on the claim that the difference is positive, or negative (`/ -verdict`): "holds", "contradicted" or
"not separated". Readers of the rendered page see the number or the words only.
"""

from __future__ import annotations

import re
from functools import cache

import pandas as pd
import result_files

from lorabench.report.comparing import ALPHA

PLACE = r"<!-- ([\w.]+)/([\w.]+): ([^<]+?) / "
FIGURE = re.compile(rf"([-+]?\d+(?:\.\d+)?){PLACE}([^<]+?) -->")
VERDICT = re.compile(rf"\*\*([^*]+)\*\*{PLACE}(-?)verdict -->")


def with_figures(page: str) -> str:
    """Return a page with the numbers of docs/results/ and the verdicts that follow from them."""
    page = FIGURE.sub(lambda match: formatted(*match.groups()) + match[0][len(match[1]) :], page)
    return VERDICT.sub(lambda match: match[0].replace(match[1], verdict(*match.groups()[1:]), 1), page)


def formatted(old: str, name: str, file: str, key: str, column: str) -> str:
    """Format a number of a result file like the one that it replaces."""
    decimals = len(old.partition(".")[2])
    sign = "+" if old.startswith("+") or "difference" in column else ""
    return f"{value(name, file, key, column):{sign}.{decimals}f}"


def verdict(name: str, file: str, key: str, sign: str) -> str:
    """Return whether a difference has the claimed sign, "" or "-", after Holm's correction."""
    claimed = value(name, file, key, "difference") * (-1 if sign else 1)
    if not value(name, file, key, "p_holm") <= ALPHA:
        return "not separated"
    return "holds" if claimed > 0 else "contradicted"


@cache
def value(name: str, file: str, key: str, column: str) -> float:
    """Return a number of a result file.

    Raises:
        SystemExit: If the file, the line or the column does not exist, or if it has no number there.
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
            if pd.isna(found[column].iloc[0]):
                raise SystemExit(f"error: {place} has no number")
            return float(found[column].iloc[0])
        names = names + " " + table.iloc[:, count].astype(str)
    raise SystemExit(f"error: {place} does not exist")
