"""Agreement of the participants of a study, and the care of their answers."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from lorabench.base import UserError
from lorabench.report.verdicts import CONTROL, ITEM, KEYS, REPEAT

COMPARISON = [*KEYS, "question", "a", "b"]  # columns that identify a comparison
EXTRA = "krippendorff"


def check_library() -> None:
    """Check that the library of the coefficient is there.

    Raises:
        UserError: If the extra is not installed.
    """
    try:
        import krippendorff  # noqa: F401
    except ImportError:
        raise UserError(
            f"agreement needs the package {EXTRA}; run pip install -c constraints.txt -e '.[study]'"
        ) from None


def alpha(verdicts: pd.DataFrame) -> float | None:
    """Return Krippendorff's alpha (nominal) of the answers to the same comparisons; None if it is not defined.

    1 is perfect agreement and 0 is chance. It needs two answers to one comparison and two different answers.

    Source: Krippendorff, Content Analysis, 2004; computed by the library of that name.
    """
    import krippendorff

    own = verdicts[(verdicts["kind"] == ITEM) & verdicts["answer"].isin(["a", "b"])]
    if own.empty:
        return None
    values = own.assign(value=own["answer"].map({"a": 1.0, "b": 0.0}).astype(float))
    table = values.pivot_table("value", "rater", COMPARISON, aggfunc="first").to_numpy()
    shared = table[:, (~np.isnan(table)).sum(axis=0) > 1]
    if shared.size == 0 or np.unique(shared[~np.isnan(shared)]).size < 2:
        return None
    return float(krippendorff.alpha(reliability_data=shared, level_of_measurement="nominal"))


def participants(verdicts: pd.DataFrame, passes: float) -> pd.DataFrame:
    """Return one row per participant.

    Columns: participant, answers, right, controls, same, repeats (answers that chose the same image again), left (share
    of answers for the left image), seconds (median), passed (share of right controls is at least `passes`, or there are
    none).
    """
    rows = []
    for name, own in verdicts.groupby("rater", sort=False):
        controls, repeats = own[own["kind"] == CONTROL], own[own["kind"] == REPEAT]
        right = int((controls["answer"] == controls["expected"]).sum())
        first = own[own["kind"] == ITEM].set_index(COMPARISON)["answer"]
        again = repeats.set_index(COMPARISON)["answer"]
        how = [json.loads(text) for text in own["raw"]]
        rows.append(
            {
                "participant": name, "answers": len(own), "right": right, "controls": len(controls),
                "same": int((first.reindex(again.index) == again).sum()), "repeats": len(repeats),
                "left": float(np.mean(np.array([each["left"] for each in how]) == own["answer"].to_numpy(dtype=str))),
                "seconds": float(np.median([each["seconds"] for each in how])),
                "passed": not len(controls) or right >= passes * len(controls),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
