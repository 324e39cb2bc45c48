"""Numbers reported by publications: one file conf/paper/<publication>.yaml with all its tables.

Each table records, as far as the publication reports it, the base model, dataset, pairs, number of images and protocol
that its numbers depend on. report/published.py compares these with a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf

from lorabench.base import CONF
from lorabench.config.choices import choose

FOLDER = CONF / "paper"
# Metrics that we score too; the protocol of a table selects the text that `clip_t` compares with.
METRICS = ("dino/content", "dino/style", "clip_i/content", "clip_i/style", "csd/content", "csd/style", "clip_t")


@dataclass
class PaperRow:
    """One row of a table.

    Attributes:
        name: Name as printed.
        method: Labels of our rows for the same method, such as "duolora no_cycle"; they may not be implemented yet.
        values: Printed number by metric, one of METRICS or of the table's `own`.
    """

    name: str = MISSING
    method: list[str] = field(default_factory=list)
    values: dict[str, float] = MISSING


@dataclass
class PaperTable:
    """One table; None: the publication does not report this.

    Attributes:
        name: Name as printed, or a short description.
        about: Subject of the table.
        source: Version or page that the numbers were copied from.
        model, dataset, pairs, protocol: Names in conf/model, conf/dataset, data/pair_lists.yaml and conf/protocol.
        images: Images per pair.
        scale: Factor of printed values of METRICS; 100 for percent.
        own: Metrics that are not in METRICS -> their description.
        open: Descriptions of unreported settings.
        study: Answers of people (or of a language model), not scores.
    """

    name: str = MISSING
    about: str = MISSING
    source: str = MISSING
    model: str | None = None
    dataset: str | None = None
    pairs: str | None = None
    images: int | None = None
    protocol: str | None = None
    scale: float = 1.0
    own: dict[str, str] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    study: bool = False
    rows: list[PaperRow] = MISSING

    def value(self, row: PaperRow, metric: str) -> float | None:
        """Return a row's number for one of our metrics, without the scale, or None."""
        printed = row.values.get("clip_t" if metric.startswith("clip_t") else metric)
        return printed if printed is None or self.scale == 1 else printed / self.scale


@dataclass
class Paper:
    """One publication.

    Attributes:
        methods: Names in conf/method of the methods that it proposes.
        orders: Claims as pairs of labels of our rows: the first is ahead of the second in this publication, in numbers
            and over all scores of the table, if not in each.
    """

    arxiv: str = MISSING
    title: str = MISSING
    venue: str | None = None
    methods: list[str] = field(default_factory=list)
    tables: list[PaperTable] = MISSING
    orders: list[list[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the part of the title before the colon, the name of the method."""
        return self.title.partition(":")[0]


@cache
def papers() -> dict[str, Paper]:
    """Return all publications by file name."""
    files = sorted(FOLDER.glob("*.yaml"))
    return {file.stem: typed(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files}


def load_paper(name: str) -> Paper:
    """Return one publication.

    Raises:
        UserError: If there is no publication of this name.
    """
    choose("--paper", name, sorted(papers()))
    return papers()[name]


def typed(values: Any) -> Paper:
    """Convert values to a Paper; omegaconf raises an error for an unknown key or a wrong type."""
    found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Paper), values))
    return found
