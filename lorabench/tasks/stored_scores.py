"""The stored scores of a plan as tables, for studies that compare rows without a run folder."""

from __future__ import annotations

import pandas as pd

from lorabench.data.catalogue import world_version
from lorabench.engine.artifact import Artifact
from lorabench.report import averages, protocols
from lorabench.tasks.plan import Plan


def scores_of(plan: Plan) -> pd.DataFrame:
    """Return the stored scores of all rows and pairs, with the keys of an image and a label."""
    return pd.concat(labeled(plan, plan.score(row, pair), row.name) for row, pair in plan.cells())


def labeled(plan: Plan, scored: Artifact, label: str) -> pd.DataFrame:
    """Return the scores of an artifact with the columns that views need."""
    scores = pd.read_parquet(plan.path(scored) / "scores.parquet")
    return scores.assign(dataset=plan.dataset.name, world=world_version(plan.dataset), label=label)


def by_label(scores: pd.DataFrame, column: protocols.Column) -> pd.DataFrame:
    """Return the values of a column, labels x pairs."""
    found = {
        str(label): averages.pair_values(protocols.image_values(own, column), *column.rule)["value"]
        for label, own in scores.groupby("label", sort=False)
    }
    return pd.DataFrame({label: values for label, values in found.items() if len(values)}).T
