"""What the publication of a method reports, to stand beside what was measured and never to be taken for it.

A method's yaml lists it under `paper`: {arxiv: "2504.13206", table: main, csd/style: 0.48}. A row of one of its
ablations says which, {arxiv: "2504.13206", table: ablation, ablation: no_cycle, csd/style: 0.45}, in the method's yaml
or in the ablation's: an ablated run also has what the method lists, which is not reported of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import pandas as pd
import yaml

from lorabench.protocols import Column
from lorabench.report.folder import RunFolder

MARK = "↳"
PHOTOGRAPHS = "dreambooth_styledrop"  # what the publications of this field draw their pairs from


@dataclass(frozen=True)
class Published:
    """One row of a publication's table.

    source: "arXiv 2504.13206, table main".
    values: by the name of the column, those of the columns that our table has.
    """

    source: str
    values: dict[str, float]

    @property
    def text(self) -> str:
        return f"reported: {self.source}"


def published(runs: list[RunFolder], columns: list[Column], arxiv: str | None = None) -> dict[str, list[Published]]:
    """label -> what is reported of it in these columns, each publication once whatever the number of runs.

    arxiv: of the publication whose protocol the columns are; then the others, of other protocols, are left out.
    """
    rows: dict[str, list[Published]] = {}
    for run in runs:
        for entry in entries(run):
            if arxiv not in (None, entry.get("arxiv")):
                continue
            row = Published(source(entry), values_of(entry, columns))
            own = rows.setdefault(run.label, [])
            if row.values and row not in own:
                own.append(row)
    return {name: own for name, own in rows.items() if own}


def values_of(entry: dict, columns: list[Column]) -> dict[str, float]:
    """The entry's numbers in the columns' scale; it has cosines, and one CLIP-T whichever text it is of."""
    found = {}
    for column in columns:
        value = entry.get("clip_t" if column.spec.metric.startswith("clip_t") else column.spec.metric)
        if value is not None and number(value) and column.spec.times is None:
            found[column.name] = value if column.spec.scale == 1 else value * column.spec.scale
    return found


def entries(run: RunFolder) -> list[dict]:
    """Of the config's `method.paper` what is of this ablation; empty where the folder has no config that says so."""
    try:
        config = yaml.safe_load(run.config)
    except yaml.YAMLError:
        return []
    method = config.get("method") if isinstance(config, dict) else None
    listed = method.get("paper") if isinstance(method, dict) else None
    own = run.manifest["ablation"]
    return [entry for entry in listed or [] if isinstance(entry, dict) and entry.get("ablation", "none") == own]


def source(entry: dict) -> str:
    """Where the numbers stand."""
    parts = [
        f"arXiv {entry['arxiv']}" if "arxiv" in entry else "",
        f"table {entry['table']}" if "table" in entry else "",
    ]
    return ", ".join(filter(None, parts)) or "publication"


def number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def footnote(runs: list[RunFolder], lines: pd.DataFrame, arxiv: str | None = None) -> str:
    """What to make of the marked rows; arxiv: as in `published`."""
    micro = any(name.endswith("@micro") for name in lines["backbone"])
    if micro or any(run.manifest["dataset"] != PHOTOGRAPHS for run in runs):
        return (
            f"Rows marked {MARK} are what the publication reports on its own data and backbones; "
            "they do not match this protocol."
        )
    what = "reports in these columns" if arxiv else "reports"
    return f"Rows marked {MARK} are what the publication {what}; its pairs, prompts and training are its own."
