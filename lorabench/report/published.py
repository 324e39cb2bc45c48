"""What publications report, to stand beside what was measured and never to be taken for it.

The numbers are in conf/paper/ (lorabench/report/papers.py). Each is compared with the run whose row it would stand
under: what
the publication says of its base model, pictures, pairs, images, backbones and averages, and what the run's folder says.
Where something differs the reader is told what. Where nothing does, the publication may still leave open what it used,
and then the numbers are side by side and no more; only where it names its pairs and leaves nothing open is a number
inside or outside of our interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from typing import Any

from lorabench.data.packaged import packaged
from lorabench.report import papers, protocols
from lorabench.report.folder import RunFolder
from lorabench.report.papers import Paper, PaperRow, PaperTable
from lorabench.report.protocols import MICRO, Column

MARK = "↳"
DIFFERS, SAME = "protocol differs", "nothing stated differs"
WORLD = "microworld"  # which no publication has


@dataclass(frozen=True)
class Published:
    """One row of a publication's table.

    source: "arXiv 2504.13206, table main".
    values: by the name of the column, those of the columns that our table has, in their scale.
    why: what differs of what the publication says of its protocol, "micro scorers, other base model"; "" is nothing.
    open: what the publication does not say.
    named: whether it names its pairs, so that ours can be the same.
    """

    source: str
    values: dict[str, float]
    why: str
    open: str = ""
    named: bool = False

    @property
    def comparable(self) -> bool:
        """Whether all that it was measured on is known, and ours is the same."""
        return self.named and not self.why and not self.open

    @property
    def text(self) -> str:
        return f"reported: {self.source}"

    @property
    def standing(self) -> str:
        """How far it can be compared with ours."""
        said = f"; not said: {self.open}" if self.open else ""
        return f"{DIFFERS}: {self.why}" if self.why else f"{SAME}{said}"

    def verdict(self, line: dict[str, Any]) -> str:
        """Where its number of the line's column lies: inside | outside our interval, DIFFERS, SAME; "" without one."""
        value = self.values.get(line["metric"])
        if value is None or not self.comparable:
            return "" if value is None else DIFFERS if self.why else SAME
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
    return Published(source, values, ", ".join(reasons), ", ".join(table.open), named(table.pairs))


def named(pairs: str | None) -> bool:
    """Whether a list of pairs is the publication's own, and not as many drawn by us."""
    return pairs is not None and isinstance(packaged("pair_lists")[pairs].get("subjects"), list)


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
    pictures = run.manifest["dataset"]
    if pictures != table.dataset if table.dataset else pictures == WORLD:
        yield "other pictures"
    else:
        if table.pairs and setting(run, "dataset", "pairs") != table.pairs:
            yield "other pairs"
        if setting(run, "dataset", "references") != "same":  # the field scores against what it trains on
            yield "references held out"
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
    f"Rows marked {MARK} are what publications report of their own training. They cannot be compared with ours, except "
    "where all that they were measured on is known and ours is the same: there inside and outside say whether a number "
    "lies in our interval."
)
