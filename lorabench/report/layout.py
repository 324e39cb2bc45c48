"""A table as blocks of text, the same for every format: scores with costs, differences to the reference, ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorabench.report import published
from lorabench.report.folder import FRAMES
from lorabench.report.table import (
    COSTS,
    Table,
    format_cost,
    format_difference,
    format_rank,
    format_reported,
    format_score,
)


@dataclass(frozen=True)
class Line:
    """kind: frame | method | reported."""

    kind: str
    cells: list[str]


@dataclass(frozen=True)
class Block:
    """title: empty of the first.  lines: with as many cells as the head."""

    title: str
    head: list[str]
    lines: list[Line]


def blocks(table: Table) -> list[Block]:
    """The scores, and, where there are any, differences and ranks of the methods."""
    found = [scores(table)]
    if table.reference is not None:
        found.append(of_methods(table, f"Difference to {table.reference}", format_difference))
    found.append(of_methods(table, "Rank", format_rank))
    return [block for block in found if block.lines]


def scores(table: Table) -> Block:
    """Every row with its costs, and what is reported of it below."""
    at, metrics, spent, letters = by_cell(table), list(table.backbones), table.spent, standings(table)
    lines = []
    for name in table.labels:
        cells = [format_score(at.get((name, metric))) for metric in metrics]
        cells += [format_cost(spent, name, cost) for cost in spent]
        lines.append(Line("frame" if name in FRAMES else "method", [name, *cells]))
        for own in table.reported.get(name, []):
            numbers = [with_verdict(own, at.get((name, metric)), metric) for metric in metrics]
            title = f"{published.MARK} {own.text} ({letters[own.standing]})"
            lines.append(Line("reported", [title, *numbers, *[""] * spent.shape[1]]))
    return Block("", ["method", *metrics, *(COSTS[cost] for cost in spent)], lines)


def of_methods(table: Table, title: str, text: Callable[[dict | None], str]) -> Block:
    """A block of the rows that have any text."""
    at, metrics = by_cell(table), list(table.backbones)
    rows = [[name, *(text(at.get((name, metric))) for metric in metrics)] for name in table.labels]
    return Block(title, ["method", *metrics], [Line("method", row) for row in rows if any(row[1:])])


def notes(table: Table) -> list[str]:
    """The paragraphs below."""
    legend = [f"({letter}) {standing}" for standing, letter in standings(table).items()]
    return [*table.notes, *(["; ".join(legend) + "."] if legend else [])]


def standings(table: Table) -> dict[str, str]:
    """How far reported rows can be compared, in words, and the letter that stands for it in the table."""
    found = dict.fromkeys(own.standing for rows in table.reported.values() for own in rows)
    return {standing: letter(number) for number, standing in enumerate(found)}


def letter(number: int) -> str:
    """0, 1, ... -> a, b, ..., z, aa, ab, ..."""
    head, last = divmod(number, 26)
    return (letter(head - 1) if head else "") + chr(ord("a") + last)


def by_cell(table: Table) -> dict[tuple[str, str], dict]:
    return {(line["label"], line["metric"]): line for line in table.lines.to_dict("records")}


def with_verdict(own: published.Published, line: dict | None, metric: str) -> str:
    """A publication's number, and whether it lies in our interval where the two can be compared."""
    verdict = own.verdict(line) if line else ""
    return " ".join(filter(None, [format_reported(own, metric), verdict if own.comparable else ""]))
