"""Which scores a publication's table shows: a view of stored scores, changed afterwards without computing anew.

In one paper CLIP-I compares with the content's images, in another with the style's; DINO is one of four networks; an
average is one over images, or over pairs, or over subjects. conf/protocol/<name>.yaml says it for each printed column.
What a column needs is in scores.parquet, where every image meets every reference on its own.

Averages (`ColumnSpec.average`), after the one over an image's references:
    pair   image -> prompt -> pair -> all
    macro  image -> prompt -> pair -> object -> all; the object is the content, of style metrics the style
    micro  every image with every reference counts the same
All of them are weighted means of pair values, so that intervals and paired differences (lorabench/report/stats.py)
hold for
each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorabench.base import CONF, UserError
from lorabench.config.choices import choose
from lorabench.config.schemas import ColumnSpec, ProtocolSpec
from lorabench.report import stats
from lorabench.scoring.files import published

ALL = ProtocolSpec("all", None, [])
# What tables show of all metrics: these first, then the others by name, without those that only protocols read.
ORDER = (
    "dino/content", "clip_i/content", "clip_i/style", "clip_t", "csd/style", "csd/content", "subject_r1", "style_r1",
)  # fmt: skip
UNSHOWN = ("clip_t/prompt", "dino/style")
MICRO = "@micro"


@dataclass(frozen=True)
class Column:
    """A column of a table. backbone: who scored it, which may stand in for the one that `spec` names."""

    spec: ColumnSpec
    backbone: str

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def rule(self) -> tuple[str, str]:
        """How stats.mean averages over images, and whose objects count."""
        return self.spec.average, "style" if self.spec.metric.endswith("/style") else "content"

    @property
    def digits(self) -> int:
        """After the point, as tables print cosines and percent."""
        return 1 if self.spec.scale >= 100 else 3


@cache
def load(name: str) -> ProtocolSpec:
    """conf/protocol/<name>.yaml; UserError where there is none."""
    choose("protocol", name, sorted(file.stem for file in (CONF / "protocol").glob("*.yaml")))
    values = yaml.safe_load((CONF / "protocol" / f"{name}.yaml").read_text(encoding="utf-8"))
    return typed({key: value for key, value in values.items() if key != "defaults"})


def typed(values: Any) -> ProtocolSpec:
    found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ProtocolSpec), values))
    return found


def of_config(config: str) -> ProtocolSpec:
    """The protocol of a run's resolved config; that of all metrics where it names none."""
    try:
        values = yaml.safe_load(config)
        return typed(values["protocol"])
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, KeyError, ValueError):
        return ALL


def columns(protocol: ProtocolSpec, scores: pd.DataFrame) -> tuple[list[Column], list[str]]:
    """The protocol's columns that these scores have, and what to say of them.

    A micro scorer stands in for a backbone of its kind. UserError where not one column can be made.
    """
    scored = scores[["metric", "backbone"]].drop_duplicates()
    by_metric: dict[str, list[str]] = {}
    for metric, backbone in scored.itertuples(index=False):
        by_metric.setdefault(metric, []).append(backbone)
    if not protocol.columns:
        return every(by_metric), []
    found, lacking, stands = [], {}, {}
    for spec in protocol.columns:
        has = [b for b in by_metric.get(spec.metric, []) if spec.times is None or b in by_metric.get(spec.times, [])]
        micro = next((backbone for backbone in has if backbone.endswith(MICRO)), None)
        if spec.backbone in has:
            found.append(Column(spec, spec.backbone))
        elif micro:
            found.append(Column(spec, micro))
            stands[spec.backbone] = micro
        else:
            lacking[spec.name] = spec.backbone
    here = [backbone for backbone in scored["backbone"] if backbone in published()]
    needed = ",".join(dict.fromkeys([*here, *lacking.values()]))
    if not found:
        raise UserError(
            f"protocol={protocol.name} needs scores that are not here; run again with scorers.backbones=[{needed}]"
        )
    notes = [f"Columns of protocol={protocol.name}{source(protocol)}: {'; '.join(map(told, found))}."]
    if stands:
        pairs = ", ".join(f"{micro} for {backbone}" for backbone, micro in stands.items())
        notes.append(f"Standing in: {pairs}. The columns are the publication's, the backbones are not.")
    if lacking:
        notes.append(f"Left out: {', '.join(lacking)}; to have them too run again with scorers.backbones=[{needed}].")
    return found, notes


def source(protocol: ProtocolSpec) -> str:
    return f" (arXiv {protocol.arxiv})" if protocol.arxiv else ""


def told(column: Column) -> str:
    """A column in words."""
    spec = column.spec
    parts = [spec.metric + (f" times {spec.times}" if spec.times else ""), f"by {column.backbone}"]
    if spec.references != "mean":
        parts.append(f"{spec.references} of the references")
    if spec.floor is not None:
        parts.append(f"at least {spec.floor:g}")
    if spec.scale != 1:
        parts.append(f"x {spec.scale:g}")
    return f"{spec.name} is {', '.join(parts)}, {spec.average} average"


def every(by_metric: dict[str, list[str]]) -> list[Column]:
    """A column a metric and backbone, named by the metric alone where it has one backbone."""
    shown = [metric for metric in ORDER if metric in by_metric]
    shown += sorted(set(by_metric) - set(ORDER) - set(UNSHOWN))
    return [
        Column(
            ColumnSpec(metric if len(by_metric[metric]) == 1 else f"{metric} {backbone}", metric, backbone), backbone
        )
        for metric in shown
        for backbone in by_metric[metric]
    ]


def image_values(scores: pd.DataFrame, column: Column) -> pd.DataFrame:
    """Rows of one method -> by stats.UNIT, `value` of the image and `count` of the values that it stands for."""
    images = measure(scores, column.spec.metric, column)
    if column.spec.times is not None:
        other = measure(scores, column.spec.times, column)["value"]
        images = images.assign(value=images["value"] * other).dropna()
    return images.assign(value=images["value"] * column.spec.scale)


def measure(scores: pd.DataFrame, metric: str, column: Column) -> pd.DataFrame:
    """As image_values, of one metric and before the scale."""
    rows = scores.loc[(scores["metric"] == metric) & (scores["backbone"] == column.backbone)]
    if column.spec.floor is not None:
        rows = rows.assign(value=np.maximum(rows["value"], column.spec.floor))
    if column.spec.references == "mean":
        return stats.image_means(rows)
    return pd.DataFrame({"value": rows.groupby(stats.UNIT)["value"].agg(column.spec.references)}).assign(count=1)
