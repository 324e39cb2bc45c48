"""Markdown tables that compare the numbers of a publication with our runs: paper | ours | verdict."""

from __future__ import annotations

from functools import cache

from lorabench.base import UserError
from lorabench.report import papers, protocols
from lorabench.report.folder import RunFolder
from lorabench.report.formats import format_score
from lorabench.report.layout import by_cell
from lorabench.report.papers import Paper, PaperRow, PaperTable
from lorabench.report.published import DIFFERS, compared
from lorabench.report.table import Table
from lorabench.report.text import escape, row

HEAD = ["row", "column", "paper", "ours", "verdict"]


def paper_tables(name: str, runs: list[RunFolder]) -> str:
    """Return all tables of conf/paper/<name>.yaml as markdown.

    Raises:
        UserError: If there is no such file.
    """
    paper = papers.load_paper(name)

    @cache
    def measured(protocol: str) -> Table | str:
        """Return our table with a protocol's columns, or the reason why it cannot be built."""
        try:
            return Table.of(runs, protocols.load_protocol(protocol))
        except UserError as error:
            return str(error)

    parts = [f"# {paper.title} (arXiv {paper.arxiv}{f', {paper.venue}' if paper.venue else ''})"]
    for table in paper.tables:
        parts += section(paper, table, measured(table.protocol) if table.protocol else None, runs)
    return "\n\n".join(parts) + "\n"


def section(paper: Paper, table: PaperTable, measured: Table | str | None, runs: list[RunFolder]) -> list[str]:
    """Return heading, table and notes of one table of the paper; `measured`: our table, or why it is missing."""
    ours = measured if isinstance(measured, Table) else None
    lines, reasons = [row(HEAD), "|---|---|---:|---:|---|"], list[str]()
    for printed in table.rows:
        numbers, differs = filled(paper, table, printed, ours, runs)
        lines += [row([escape(cell) for cell in [printed.name, *number]]) for number in numbers]
        reasons += differs
    parts = [f"## {table.name}: {table.about}", "\n".join(lines)]
    notes = [f"Source: {table.source}."]
    if reasons:
        notes.append(f"{DIFFERS.capitalize()}: {', '.join(dict.fromkeys(reasons))}.")
    if table.open:
        notes.append(f"Unreported: {', '.join(table.open)}.")
    notes += [f"{metric}: {meaning}." for metric, meaning in table.own.items()]
    return [*parts, " ".join(notes), *([measured] if isinstance(measured, str) else [])]


def filled(
    paper: Paper, table: PaperTable, printed: PaperRow, ours: Table | None, runs: list[RunFolder]
) -> tuple[list[list[str]], list[str]]:
    """Compare one printed row with each of our rows for the same method.

    Args:
        paper: The publication.
        table: Its table.
        printed: Row of its table.
        ours: Our table; None if it cannot be built.
        runs: Our runs.

    Returns:
        Lines of (column, paper, ours, verdict), and the differences between the two protocols.
    """
    columns = ours.columns if ours else []
    labels = [label for label in printed.method if ours and label in ours.labels] or [None]
    cells, numbers, reasons = by_cell(ours) if ours else {}, list[list[str]](), list[str]()
    for label in labels:
        own = compared(paper, table, printed, [run for run in runs if run.label == label], columns)
        shown = set[str]()
        for column in columns:
            if column.name in own.values:
                line = cells.get((label or "", column.name))
                score = f"{label}: {format_score(line | {'separated': None})}" if line else ""
                verdict = own.verdict(line) if line else "not run"
                numbers.append([column.name, f"{own.values[column.name]:g}", score, verdict])
                shown.add(metric_key(column.spec.metric))
        rest = {metric: value for metric, value in printed.values.items() if metric not in shown}
        numbers += [[metric, f"{value:g}", "", "not scored"] for metric, value in rest.items()]
        reasons += [own.why] if label and own.why else []
    return numbers, reasons


def metric_key(metric: str) -> str:
    """Return the name that conf/paper uses for one of our metrics."""
    return "clip_t" if metric.startswith("clip_t") else metric
