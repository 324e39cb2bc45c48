"""What publications report, to stand beside what was measured and never to be taken for it.

The numbers are in conf/paper/ (lorabench/papers.py). Each is compared with the run whose row it would stand under: what
the publication says of its base model, pictures, pairs, images, backbones and averages, and what the run's folder says.
Where nothing differs, a number is inside or outside of our interval; else the reader is told what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from typing import Any

from lorabench import papers, protocols
from lorabench.papers import Paper, PaperRow, PaperTable
from lorabench.protocols import MICRO, Column
from lorabench.report.folder import RunFolder

MARK = "↳"
DIFFERS = "protocol differs"


@dataclass(frozen=True)
class Published:
    """One row of a publication's table.

    source: "arXiv 2504.13206, table main".
    values: by the name of the column, those of the columns that our table has, in their scale.
    matches: whether nothing that the publication says of its protocol differs from ours.
    why: what differs, "micro scorers, other base model"; empty where it matches.
    open: what the publication does not say.
    """

    source: str
    values: dict[str, float]
    matches: bool
    why: str
    open: str = ""

    @property
    def text(self) -> str:
        return f"reported: {self.source}"

    @property
    def standing(self) -> str:
        """How far it can be compared with ours."""
        said = f"; not said: {self.open}" if self.open else ""
        return f"protocol matches{said}" if self.matches else f"{DIFFERS}: {self.why}"

    def verdict(self, line: dict[str, Any]) -> str:
        """Where its number of the line's column lies: inside | outside our interval, or DIFFERS; "" without one."""
        value = self.values.get(line["metric"])
        if value is None or not self.matches:
            return "" if value is None else DIFFERS
        if isnan(line["low"]):
            return ""
        return "inside" if line["low"] <= value <= line["high"] else "outside"


def published(runs: list[RunFolder], columns: list[Column], arxiv: str | None = None) -> dict[str, list[Published]]:
    """label -> what is reported of it in these columns, each row once whatever the number of runs.

    arxiv: of the publication whose protocol the columns are: then of it alone, otherwise of all publications that
    propose one of the runs' methods.
    """
    found: dict[str, list[Published]] = {}
    methods = {run.manifest["method"] for run in runs}
    chosen = [p for p in papers.papers().values() if (p.arxiv == arxiv if arxiv else methods & set(p.methods))]
    for label in dict.fromkeys(run.label for run in runs):
        own = [run for run in runs if run.label == label]
        rows = [row for paper in chosen for row in reported(paper, label, own, columns)]
        if rows:
            found[label] = rows
    return found


def reported(paper: Paper, label: str, runs: list[RunFolder], columns: list[Column]) -> list[Published]:
    """A publication's rows of one label; runs: of that label. What another of its tables says too is left out."""
    rows: list[Published] = []
    for table in paper.tables:
        for row in (row for row in table.rows if label in row.method):
            own = compared(paper, table, row, runs, columns)
            if own.values and not any(own.values.items() <= other.values.items() for other in rows):
                rows.append(own)
    return rows


def compared(paper: Paper, table: PaperTable, row: PaperRow, runs: list[RunFolder], columns: list[Column]) -> Published:
    """One printed row against the runs of our row of the same thing."""
    values = {column.name: value for column in columns if (value := in_column(table, row, column)) is not None}
    shown = [column for column in columns if column.name in values]
    reasons = list(dict.fromkeys(why for run in runs for why in differences(table, run, shown)))
    source = f"arXiv {paper.arxiv}, table {table.name}"
    return Published(source, values, not reasons, ", ".join(reasons), ", ".join(table.open))


def in_column(table: PaperTable, row: PaperRow, column: Column) -> float | None:
    """The row's number in the scale of one of our columns."""
    value = None if column.spec.times else table.value(row, column.spec.metric)
    return value if value is None or column.spec.scale == 1 else value * column.spec.scale


def differences(table: PaperTable, run: RunFolder, columns: list[Column]) -> Iterator[str]:
    """What the publication says of a table and is not so in a run's columns, in a few words each."""
    if table.protocol is None:
        yield "how it was measured is not among our protocols"
    for column in columns:
        yield from measured_otherwise(table, column)
    if table.model and run.manifest["model"] != table.model:
        yield "other base model"
    if table.dataset and run.manifest["dataset"] != table.dataset:
        yield "other pictures"
    elif table.pairs and setting(run, "dataset", "pairs") != table.pairs:
        yield "other pairs"
    if table.images and (own := setting(run, "generate", "images")) != table.images:
        yield f"{own or 'unknown'} images a pair, not {table.images}"


def measured_otherwise(table: PaperTable, column: Column) -> Iterator[str]:
    """Where our column is not the one of the table's protocol."""
    if column.backbone.endswith(MICRO):
        yield "micro scorers"
    kind = column.spec.metric.partition("/")[0]
    specs = protocols.load(table.protocol).columns if table.protocol else []
    spec = next((s for s in specs if s.metric == column.spec.metric), None)
    if spec is None:
        spec = next((s for s in specs if kind == "clip_t" == s.metric.partition("/")[0]), None)
        if spec is None:
            return
        yield "other text"
    if not column.backbone.endswith(MICRO) and column.backbone != spec.backbone:
        yield f"{column.backbone}, not {spec.backbone}"
    if (column.spec.average, column.spec.references) != (spec.average, spec.references):
        yield "other average"


def setting(run: RunFolder, group: str, key: str) -> Any:
    """A value of the run's config; None where it has none."""
    values = run.settings.get(group)
    return values.get(key) if isinstance(values, dict) else None


FOOTNOTE = (
    f"Rows marked {MARK} are what publications report of their own training. Where nothing that they say of their "
    "protocol differs from ours, inside and outside say whether the number lies in our interval; else it cannot be "
    "compared with ours."
)
