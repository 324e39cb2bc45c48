"""A table as blocks of text cells, shared by all output formats: scores and costs, differences, comparisons, ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorabench.report import planned, published
from lorabench.report.formats import format_cost, format_difference, format_rank, format_reported, format_score
from lorabench.report.labels import BASELINES_AND_ORACLE
from lorabench.report.table import COSTS, Table


@dataclass(frozen=True)
class Line:
    """One line of a block; kind: "frame" (baseline or oracle row), "method" or "reported" (from a publication)."""

    kind: str
    cells: list[str]


@dataclass(frozen=True)
class Block:
    """A titled group of lines with as many cells as `head`; the first block has an empty title."""

    title: str
    head: list[str]
    lines: list[Line]


def blocks(table: Table) -> list[Block]:
    """Return the block of scores and, if not empty, the blocks of differences and ranks."""
    found = [scores(table)]
    if table.reference is not None:
        found.append(of_methods(table, f"Difference to {table.reference}", format_difference))
    found += planned_blocks(table)
    found.append(of_methods(table, "Rank", format_rank))
    return [block for block in found if block.lines]


def scores(table: Table) -> Block:
    """Return all rows with their costs, each followed by the rows that publications report."""
    at, metrics, spent, letters = by_cell(table), list(table.backbones), table.spent, standings(table)
    lines = []
    for name in table.labels:
        cells = [format_score(at.get((name, metric))) for metric in metrics]
        cells += [format_cost(spent, name, cost) for cost in spent]
        lines.append(Line("frame" if name in BASELINES_AND_ORACLE else "method", [name, *cells]))
        for own in table.reported.get(name, []):
            numbers = [with_verdict(own, at.get((name, metric)), metric) for metric in metrics]
            title = f"{published.MARK} {own.text} ({letters[own.standing]})"
            lines.append(Line("reported", [title, *numbers, *[""] * spent.shape[1]]))
    return Block("", ["method", *metrics, *(COSTS[cost] for cost in spent)], lines)


def of_methods(table: Table, title: str, text: Callable[[dict | None], str]) -> Block:
    """Return a block of the rows that have at least one non-empty cell."""
    at, metrics = by_cell(table), list(table.backbones)
    rows = [[name, *(text(at.get((name, metric))) for metric in metrics)] for name in table.labels]
    return Block(title, ["method", *metrics], [Line("method", row) for row in rows if any(row[1:])])


def planned_blocks(table: Table) -> list[Block]:
    """Return a block per family of planned comparisons, without those that the differences to the reference show.

    There are none for one pair, which has no differences.
    """
    metrics = list(table.backbones)
    found = []
    for family, own in planned.shown_apart(table.planned, table.reference).groupby("family", sort=False):
        lines = []
        for (label, against), cells in own.groupby(["label", "against"], sort=False):
            at = {line["metric"]: line for line in cells.to_dict("records")}
            texts = [format_difference(at.get(metric)) for metric in metrics]
            if any(texts):
                lines.append(Line("method", [f"{label} - {against}", *texts]))
        if lines:
            found.append(Block(planned.title(str(family)), ["comparison", *metrics], lines))
    return found


def notes(table: Table) -> list[str]:
    """Return the paragraphs below the table."""
    legend = [f"({letter}) {standing}" for standing, letter in standings(table).items()]
    return [*table.notes, *(["; ".join(legend) + "."] if legend else []), *table.verdict]


def standings(table: Table) -> dict[str, str]:
    """Return how comparable the reported rows are, as text -> letter that refers to this text in the table."""
    found = dict.fromkeys(own.standing for rows in table.reported.values() for own in rows)
    return {standing: letter(number) for number, standing in enumerate(found)}


def letter(number: int) -> str:
    """Return the label of a footnote: 0, 1, ... -> a, b, ..., z, aa, ab, ..."""
    head, last = divmod(number, 26)
    return (letter(head - 1) if head else "") + chr(ord("a") + last)


def by_cell(table: Table) -> dict[tuple[str, str], dict]:
    """Return the lines of a table by row label and metric."""
    return {(line["label"], line["metric"]): line for line in table.lines.to_dict("records")}


def with_verdict(own: published.Published, line: dict | None, metric: str) -> str:
    """Format a publication's number and, if comparable, whether it is inside or outside our interval."""
    verdict = own.verdict(line) if line else ""
    return " ".join(filter(None, [format_reported(own, metric), verdict if own.comparable else ""]))
