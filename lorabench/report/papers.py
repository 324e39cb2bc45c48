"""The numbers of publications, as data: conf/paper/<publication>.yaml, a file a publication with all its tables.

A number belongs to what it was measured on. So each table says its base model, pictures, pairs, images and protocol, as
far as the publication does, and what it leaves open; report/published.py compares that with a run.
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
# Names of what we score too. `clip_t` is of whichever text the table's protocol says.
METRICS = ("dino/content", "dino/style", "clip_i/content", "clip_i/style", "csd/content", "csd/style", "clip_t")


@dataclass
class PaperRow:
    """name: as printed.  method: our row labels of the same thing, "duolora no_cycle"; of methods not here yet as well.

    values: by one of METRICS or of the table's own, as printed.
    """

    name: str = MISSING
    method: list[str] = field(default_factory=list)
    values: dict[str, float] = MISSING


@dataclass
class PaperTable:
    """One table; None is what the publication does not say.

    name: as printed, or what it is about.  about: what is measured.  source: where the numbers were read.
    model, dataset, pairs, protocol: by their names in conf/model, conf/dataset, data/pair_lists.yaml, conf/protocol.
    images: a pair.  scale: what values of METRICS are multiplied by; 100 is percent.
    own: metrics that are not among METRICS, and what they are.  open: what is not said, in words.
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
    rows: list[PaperRow] = MISSING

    def value(self, row: PaperRow, metric: str) -> float | None:
        """A row's number for one of our metrics, unscaled: a cosine or a share."""
        printed = row.values.get("clip_t" if metric.startswith("clip_t") else metric)
        return printed if printed is None or self.scale == 1 else printed / self.scale


@dataclass
class Paper:
    """One publication; methods: by their yaml, those that it proposes."""

    arxiv: str = MISSING
    title: str = MISSING
    venue: str | None = None
    methods: list[str] = field(default_factory=list)
    tables: list[PaperTable] = MISSING


@cache
def papers() -> dict[str, Paper]:
    """Every publication by the name of its file."""
    files = sorted(FOLDER.glob("*.yaml"))
    return {file.stem: typed(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files}


def load(name: str) -> Paper:
    """One publication; UserError where there is none of this name."""
    choose("--paper", name, sorted(papers()))
    return papers()[name]


def typed(values: Any) -> Paper:
    """Raises omegaconf's errors for an unknown key or a wrong type."""
    found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Paper), values))
    return found
