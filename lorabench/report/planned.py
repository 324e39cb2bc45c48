"""Planned comparisons: which rows of a table are tested against which.

    family               compared
    methods              each method against the reference row (`reference`, by default `direct`)
    ablations            each ablation against its method
    closed               each learned method against its closed form, as ziplora against ziplora_closed
    published by <name>  each row against a row that it is ahead of in this publication (`orders` in conf/paper/)

Holm's correction is made within each family and column, because each family answers a question of its own. So an order
that is published by two papers is tested in both families. The family of a publication always has all of its orders: a
claim is judged alike in every table, whatever other rows it has. An ablation whose method is not in the table is
compared as a method, and so is an imported row, whose LoRAs are others. Other differences may be read from the table,
but they are not tested. The differences are paired by (pair, prompt, seed) and have 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isnan, nan

import pandas as pd

from lorabench.report import averages, comparing, stats
from lorabench.report.labels import BASELINES_AND_ORACLE, is_imported
from lorabench.report.papers import papers
from lorabench.report.protocols import Column

METHODS, ABLATIONS, CLOSED, PUBLISHED = "methods", "ablations", "closed", "published by"
TITLES = {ABLATIONS: "Ablations against their method", CLOSED: "Learned methods against their closed form"}
CLOSED_FORM = "_closed"  # ending of a closed form's name
LINE = [
    "family", "label", "against", "metric", "backbone", "digits", "pairs", "images",
    "difference", "difference_low", "difference_high", "p", "shared_pairs", "shared_images", "p_holm", "separated",
]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A row that is tested against another one; both are labels."""

    family: str
    label: str
    against: str


def comparisons(labels: Sequence[str], reference: str | None) -> list[Comparison]:
    """Return the planned comparisons among the rows of a table.

    >>> for each in comparisons(["direct", "ziplora", "ziplora row_masks", "ziplora_closed"], "direct"):
    ...     print(each.family, each.label, "-", each.against)
    methods ziplora - direct
    methods ziplora_closed - direct
    ablations ziplora row_masks - ziplora
    closed ziplora - ziplora_closed
    published by DuoLoRA ziplora - direct
    published by ZipLoRA ziplora - direct
    """
    rows = [label for label in labels if label not in BASELINES_AND_ORACLE]
    method_of = {label: label if is_imported(label) else label.partition(" ")[0] for label in rows}
    ablations = [label for label in rows if method_of[label] != label and method_of[label] in rows]
    found = []
    if reference is not None and reference in labels:
        found += [
            Comparison(METHODS, label, reference) for label in rows if label not in ablations and label != reference
        ]
    found += [Comparison(ABLATIONS, label, method_of[label]) for label in ablations]
    closed = {label: f"{label}{CLOSED_FORM}" for label in rows}
    found += [Comparison(CLOSED, label, form) for label, form in closed.items() if form in rows]
    return found + [
        Comparison(f"{PUBLISHED} {paper.name}", ahead, behind)
        for paper in papers().values()
        for ahead, behind in paper.orders
        if ahead in rows and behind in rows
    ]


def title(family: str) -> str:
    """Return the title of a family's table.

    >>> title("closed"), title("published by DuoLoRA")
    ('Learned methods against their closed form', 'Orders published by DuoLoRA (first row ahead)')
    """
    return TITLES.get(family, f"Orders {family} (first row ahead)")


def shown_apart(lines: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """Return the comparisons that need a table of their own.

    Differences to the reference are shown by row. Published orders are shown with it too, with p values of their own.

    Args:
        lines: Result of `planned_lines`.
        reference: Label of the reference row.
    """
    published = lines["family"].astype(str).str.startswith(PUBLISHED)
    return lines[published | (lines["family"] != METHODS) & (lines["against"] != reference)]


def contrasts(lines: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the labels of each comparison once, in the published direction if a publication has one.

    Args:
        lines: Result of `planned_lines`; published orders are last.
    """
    found = zip(lines["label"].astype(str), lines["against"].astype(str), strict=True)
    return list({frozenset(each): each for each in found}.values())


def planned_lines(images: Mapping[str, pd.DataFrame], column: Column, reference: str | None) -> pd.DataFrame:
    """Return one line per planned comparison of a column, with the columns LINE.

    Args:
        images: Result of `protocols.image_values` by label.
        column: The column.
        reference: Label of the reference row; None compares no method with it.
    """
    lines = []
    compared = cache(lambda label, against: difference(images[label], images[against], column))  # in several families
    for each in comparisons(list(images), reference):
        own = images[each.label]
        line = {
            "family": each.family,
            "label": each.label,
            "against": each.against,
            "metric": column.name,
            "backbone": column.backbone,
            "digits": column.digits,
            "pairs": len(averages.by_pair(pd.Series(own["value"]))),
            "images": len(own),
        }
        lines.append(line | compared(each.label, each.against))
    frame = pd.DataFrame(lines).reindex(columns=LINE)
    for name, family in frame.groupby("family", sort=False):
        p = family["p"].to_numpy(dtype=float)
        frame.loc[family.index, "p_holm"] = comparing.holm(p, published_orders(str(name)))
    separated = [nan if isnan(p) else bool(p <= comparing.ALPHA) for p in frame["p_holm"].astype(float)]
    return frame.assign(separated=pd.Series(separated, frame.index, dtype=object))


def published_orders(family: str) -> int:
    """Return the number of orders that a publication reports, in a table or not; 0 for the other families.

    >>> published_orders("published by ZipLoRA"), published_orders("ablations")
    (2, 0)
    """
    return sum(len(paper.orders) for paper in papers().values() if family == f"{PUBLISHED} {paper.name}")


def difference(own: pd.DataFrame, other: pd.DataFrame, column: Column) -> dict[str, float]:
    """Return the paired difference of two rows in a column; without interval for less than two shared pairs."""
    delta = stats.difference(own, other, *column.rule)
    line: dict[str, float] = {
        "shared_pairs": delta.pairs,
        "shared_images": len(own.index.intersection(other.index)),
        "difference": nan,
        "difference_low": nan,
        "difference_high": nan,
        "p": nan,
    }
    if not isnan(delta.low):
        line |= {
            "difference": delta.mean,
            "difference_low": delta.low,
            "difference_high": delta.high,
            "p": delta.p,
        }
    return line
