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

from lorabench.report.folder import RunFolder

MARK = "↳"
PHOTOGRAPHS = "dreambooth_styledrop"  # what the publications of this field draw their pairs from


@dataclass(frozen=True)
class Published:
    """One row of a publication's table.

    source: "arXiv 2504.13206, table main".
    values: by metric, those of the columns that our table has.
    """

    source: str
    values: dict[str, float]

    @property
    def text(self) -> str:
        return f"reported: {self.source}"


def published(runs: list[RunFolder], metrics: list[str]) -> dict[str, list[Published]]:
    """label -> what is reported of it in these metrics, each publication once whatever the number of runs."""
    rows: dict[str, list[Published]] = {}
    for run in runs:
        for entry in entries(run):
            row = Published(source(entry), {metric: entry[metric] for metric in metrics if number(entry.get(metric))})
            own = rows.setdefault(run.label, [])
            if row.values and row not in own:
                own.append(row)
    return {name: own for name, own in rows.items() if own}


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


def footnote(runs: list[RunFolder], lines: pd.DataFrame) -> str:
    """What to make of the marked rows."""
    micro = any(name.endswith("@micro") for name in lines["backbone"])
    if micro or any(run.manifest["dataset"] != PHOTOGRAPHS for run in runs):
        return (
            f"Rows marked {MARK} are what the publication reports on its own data and backbones; "
            "they do not match this protocol."
        )
    return f"Rows marked {MARK} are what the publication reports; its pairs, prompts and training are its own."
