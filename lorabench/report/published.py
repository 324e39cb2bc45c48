"""Numbers that publications report, shown below our rows and marked as reported.

The numbers are in conf/paper/ (report/papers.py). Each is compared with the run of the row above it: the base model,
dataset, pairs, images, backbones and averages of the publication against those of the run folder. Differences are
listed. If there are none, but the publication leaves settings open, the numbers are only shown together. A number is
marked as inside or outside our interval only if the publication names its pairs and leaves nothing open.
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
WORLD = "microworld"  # how datasets start that no publication uses


@dataclass(frozen=True)
class Published:
    """One row of a publication's table.

    Attributes:
        source: Such as "arXiv 2504.13206, table main".
        values: Number by column of our table, in the scale of the column.
        why: Differences to our protocol, such as "micro scorers, other base model"; empty if there are none.
        open: Settings that the publication does not report.
        named: True if the publication names its pairs, so ours can be the same.
    """

    source: str
    values: dict[str, float]
    why: str
    open: str = ""
    named: bool = False

    @property
    def comparable(self) -> bool:
        """Return True if the publication reports all settings and ours are the same."""
        return self.named and not self.why and not self.open

    @property
    def text(self) -> str:
        """Return the label of the row."""
        return f"reported: {self.source}"

    @property
    def standing(self) -> str:
        """Return how comparable the numbers are with ours."""
        unreported = f"; unreported: {self.open}" if self.open else ""
        return f"{DIFFERS}: {self.why}" if self.why else f"{SAME}{unreported}"

    def verdict(self, line: dict[str, Any]) -> str:
        """Compare with our interval: "inside", "outside", DIFFERS, SAME, or "" if there is no number or interval."""
        value = self.values.get(line["metric"])
        if value is None or not self.comparable:
            return "" if value is None else DIFFERS if self.why else SAME
        if isnan(line["low"]):
            return ""
        return "inside" if line["low"] <= value <= line["high"] else "outside"


def published_results(
    runs: list[RunFolder], columns: list[Column], arxiv: str | None = None
) -> dict[str, list[Published]]:
    """Return label -> reported rows, each once, whatever the number of runs.

    Args:
        runs: Runs of our table.
        columns: Columns of our table.
        arxiv: Publication whose protocol defines the columns: use only its rows. None: use all publications that
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
    """Return a publication's rows of one label, without those that repeat numbers of an earlier table.

    Args:
        paper: The publication.
        label: Label of our row.
        runs: Our runs of that row.
        columns: Columns of our table.
    """
    rows: list[Published] = []
    for table in paper.tables:
        for row in (row for row in table.rows if label in row.method):
            own = compared(paper, table, row, runs, columns)
            if own.values and not any(own.values.items() <= other.values.items() for other in rows):
                rows.append(own)
    return rows


def compared(paper: Paper, table: PaperTable, row: PaperRow, runs: list[RunFolder], columns: list[Column]) -> Published:
    """Compare one printed row with the runs of our row for the same method.

    Args:
        paper: The publication.
        table: Its table.
        row: Row of its table.
        runs: Our runs of the same method.
        columns: Columns of our table.
    """
    values = {column.name: value for column in columns if (value := in_column(table, row, column)) is not None}
    shown = [column for column in columns if column.name in values]
    reasons = list(dict.fromkeys(why for run in runs for why in differences(table, run, shown)))
    source = f"arXiv {paper.arxiv}, table {table.name}"
    return Published(source, values, ", ".join(reasons), ", ".join(table.open), named(table.pairs))


def named(pairs: str | None) -> bool:
    """Return True if this list of pairs is the publication's own, not a sample of the same size."""
    return pairs is not None and isinstance(packaged("pair_lists")[pairs].get("subjects"), list)


def in_column(table: PaperTable, row: PaperRow, column: Column) -> float | None:
    """Return the row's number in the scale of one of our columns, or None."""
    specs = protocols.load_protocol(table.protocol).columns if table.protocol else []
    use = next((spec.use for spec in specs if spec.metric == column.spec.metric), "joint")
    value = None if column.spec.times or column.spec.use != use else table.value(row, column.spec.metric)
    return value if value is None or column.spec.scale == 1 else value * column.spec.scale


def differences(table: PaperTable, run: RunFolder, columns: list[Column]) -> Iterator[str]:
    """Yield short descriptions of settings that differ between the publication's table and a run."""
    if table.protocol is None:
        yield "its protocol is not available here"
    for column in columns:
        yield from measured_otherwise(table, column)
    if table.model and run.manifest["model"] != table.model:
        yield "other base model"
    dataset = run.manifest["dataset"]
    if dataset != table.dataset if table.dataset else dataset.startswith(WORLD):
        yield "other dataset"
    else:
        if table.pairs and setting(run, "dataset", "pairs") != table.pairs:
            yield "other pairs"
        if setting(run, "dataset", "references") != "same":  # publications score against the training images
            yield "references held out"
    if table.images and (own := setting(run, "generate", "images")) != table.images:
        yield f"{own or 'unknown'} images per pair, not {table.images}"


def measured_otherwise(table: PaperTable, column: Column) -> Iterator[str]:
    """Yield how our column differs from that of the table's protocol."""
    if column.backbone.endswith(MICRO):
        yield "micro scorers"
    kind = column.spec.metric.partition("/")[0]
    specs = protocols.load_protocol(table.protocol).columns if table.protocol else []
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
    """Return a value of the run's config, or None."""
    values = run.settings.get(group)
    return values.get(key) if isinstance(values, dict) else None


FOOTNOTE = (
    f"Rows marked {MARK} are numbers that publications report for their own training. They are comparable with ours "
    'only if all settings are reported and equal; "inside" and "outside" then refer to our interval.'
)
