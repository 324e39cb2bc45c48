"""Columns of a publication's table, computed from stored scores without recomputing any of them.

Publications use the same names for different measurements. CLIP-I compares with the content's images in one paper and
with the style's in another; DINO stands for four networks; averages are over images, pairs or subjects.
conf/protocol/<name>.yaml defines each printed column. The required values are in scores.parquet, which has one row per
image and reference.

Averages (`ColumnSpec.average`), after averaging over the references of an image:
    pair   image -> prompt -> pair -> all
    macro  image -> prompt -> pair -> object -> all; the object is the content, or the style for style metrics
    micro  all combinations of image and reference have the same weight
All of them are weighted means of pair values, so the intervals and paired differences of report/stats.py apply.
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
from lorabench.report import averages
from lorabench.report.headline import BOTH, SIMILARITY
from lorabench.scoring.files import backbones

ALL = ProtocolSpec("all", None, [])
# Order of the columns that show all metrics; others follow by name, except UNSHOWN, which only protocols use.
ORDER = (
    BOTH, SIMILARITY, "truth/content", "truth/style", "dino/content", "copy/content", "diversity", "clip_i/content",
    "clip_i/style", "clip_t", "clip_t/photo", "ground_acc", "csd/style", "copy/style", "csd/content",
    "subject_r1", "style_r1",
)  # fmt: skip
UNSHOWN = ("clip_t/prompt", "dino/style")
NEAREST = ("copy/content", "copy/style")  # the greatest similarity of an image with a training image
MICRO = "@micro"
USES = {
    "content": "the content by itself", "style": "the style by itself",
    "cross": "the content of one image with the style of another",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of a table; `backbone` computed the scores and may replace the one that `spec` names."""

    spec: ColumnSpec
    backbone: str

    @property
    def name(self) -> str:
        """Return the name of the column."""
        return self.spec.name

    @property
    def metric(self) -> str:
        """Return the name of the metric in the scores of a table, see `in_use`."""
        return in_use(self.spec.metric, self.spec.use)

    @property
    def rule(self) -> tuple[str, str]:
        """Return the average and the level of objects, as the arguments `rule` and `of` of stats.mean."""
        return self.spec.average, "style" if self.spec.metric.endswith("/style") else "content"

    @property
    def digits(self) -> int:
        """Return the number of decimals: 3 for cosines, 1 for percent."""
        return 1 if self.spec.scale >= 100 else 3


@cache
def load_protocol(name: str) -> ProtocolSpec:
    """Load conf/protocol/<name>.yaml.

    Raises:
        UserError: If there is no such file.
    """
    choose("protocol", name, sorted(file.stem for file in (CONF / "protocol").glob("*.yaml")))
    values = yaml.safe_load((CONF / "protocol" / f"{name}.yaml").read_text(encoding="utf-8"))
    return typed({key: value for key, value in values.items() if key != "defaults"})


def typed(values: Any) -> ProtocolSpec:
    """Return the protocol of values from a file, with checked types."""
    found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ProtocolSpec), values))
    return found


def of_config(config: str) -> ProtocolSpec:
    """Return the protocol of a run's resolved config, or the one of all metrics if it has none."""
    try:
        values = yaml.safe_load(config)
        return typed(values["protocol"])
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, KeyError, ValueError):
        return ALL


def columns(protocol: ProtocolSpec, scores: pd.DataFrame) -> tuple[list[Column], list[str]]:
    """Select the protocol's columns that these scores can fill; micro scorers replace backbones of the same kind.

    Returns:
        The columns, and notes on replaced and missing ones.

    Raises:
        UserError: If no column can be filled.
    """
    scored = scores[["metric", "backbone"]].drop_duplicates()
    by_metric: dict[str, list[str]] = {}
    for metric, backbone in scored.itertuples(index=False):
        by_metric.setdefault(metric, []).append(backbone)
    if not protocol.columns:
        return every(by_metric), []
    found, lacking, replaced, unused = [], {}, {}, set[str]()
    for spec in protocol.columns:
        names = [in_use(metric, spec.use) for metric in (spec.metric, spec.times) if metric]
        has = [b for b in by_metric.get(names[0], []) if all(b in by_metric.get(name, []) for name in names)]
        micro = next((backbone for backbone in has if backbone.endswith(MICRO)), None)
        if spec.backbone in has:
            found.append(Column(spec, spec.backbone))
        elif micro:
            found.append(Column(spec, micro))
            replaced[spec.backbone] = micro
        else:
            lacking[spec.name] = spec.backbone
            unused |= {spec.use} if not any(name.startswith(in_use("", spec.use)) for name in by_metric) else set()
    here = [backbone for backbone in scored["backbone"] if backbone in backbones()]
    needed = f"scorers.backbones=[{','.join(dict.fromkeys([*here, *lacking.values()]))}]"
    if unused:
        needed = f"uses=[{','.join(sorted(unused))}]"
    if not found:
        raise UserError(f"protocol={protocol.name} needs scores that this run does not have; run again with {needed}")
    notes = [f"Columns of protocol={protocol.name}{source(protocol)}: {'; '.join(map(definition, found))}."]
    if replaced:
        pairs = ", ".join(f"{micro} for {backbone}" for backbone, micro in replaced.items())
        follow = " The columns follow the publication, the backbones do not." if protocol.arxiv else ""
        notes.append(f"Replaced backbones: {pairs}.{follow}")
    if lacking:
        notes.append(f"Missing: {', '.join(lacking)}; to add them run again with {needed}.")
    return found, notes


def source(protocol: ProtocolSpec) -> str:
    """Return the arXiv number of a protocol in parentheses, or ""."""
    return f" (arXiv {protocol.arxiv})" if protocol.arxiv else ""


def definition(column: Column) -> str:
    """Describe how a column is computed."""
    spec = column.spec
    parts = [spec.metric + (f" times {spec.times}" if spec.times else ""), f"by {column.backbone}"]
    if spec.use != "joint":
        parts.append(f"of images of {USES[spec.use]}")
    if spec.references != "mean":
        parts.append(f"{spec.references} of the references")
    if spec.floor is not None:
        parts.append(f"at least {spec.floor:g}")
    if spec.scale != 1:
        parts.append(f"x {spec.scale:g}")
    same = spec.name == parts[0]
    return f"{spec.name} {', '.join(parts[1:]) if same else 'is ' + ', '.join(parts)}, {spec.average} average"


def in_use(metric: str, use: str) -> str:
    """Return the name of a metric for images of a use, as in `report.folder.other_scores`.

    >>> in_use("csd/style", "joint"), in_use("csd/style", "content")
    ('csd/style', 'content csd/style')
    """
    return metric if use == "joint" else f"{use} {metric}"


def every(by_metric: dict[str, list[str]]) -> list[Column]:
    """Return one column per metric and backbone; the name omits the backbone if the metric has only one."""
    shown = [metric for metric in ORDER if metric in by_metric]
    shown += sorted(set(by_metric) - set(ORDER) - set(UNSHOWN))
    return [
        Column(
            ColumnSpec(
                metric if len(by_metric[metric]) == 1 else f"{metric} {backbone}", metric, backbone, reduction(metric)
            ),
            backbone,
        )
        for metric in shown
        for backbone in by_metric[metric]
    ]


def reduction(metric: str) -> str:
    """Return the reduction over the references of an image if no protocol defines it.

    >>> reduction("copy/style"), reduction("style copy/style"), reduction("style csd/style")
    ('max', 'max', 'mean')
    """
    return "max" if metric.rpartition(" ")[2] in NEAREST else "mean"


def image_values(scores: pd.DataFrame, column: Column) -> pd.DataFrame:
    """Return, by averages.UNIT, the `value` of each image and the `count` of scores in it, for one method."""
    images = measure(scores, column.metric, column)
    if column.spec.times is not None:
        other = measure(scores, in_use(column.spec.times, column.spec.use), column)["value"]
        images = images.assign(value=images["value"] * other).dropna()
    return images.assign(value=images["value"] * column.spec.scale)


def measure(scores: pd.DataFrame, metric: str, column: Column) -> pd.DataFrame:
    """Return the same as `image_values` for one metric, before scaling."""
    rows = scores.loc[(scores["metric"] == metric) & (scores["backbone"] == column.backbone)]
    if column.spec.floor is not None:
        rows = rows.assign(value=np.maximum(rows["value"], column.spec.floor))
    if column.spec.references == "mean":
        return averages.image_means(rows)
    return pd.DataFrame({"value": rows.groupby(averages.UNIT)["value"].agg(column.spec.references)}).assign(count=1)
