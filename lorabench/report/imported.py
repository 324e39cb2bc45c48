"""Imported runs: made elsewhere, and added to a table by task=import_results.

Their rows are named with their origin, because their LoRAs are others than those of the table's own runs. Baseline and
oracle rows have one origin: the table's own runs, or the first imported run if there are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from lorabench.report.labels import BASELINES_AND_ORACLE, provenance

if TYPE_CHECKING:
    from lorabench.report.folder import RunFolder

IMPORTED = "imported"  # key of the manifest of an imported run: {"origin", "folder"}
CHECKSUMS = "checksums"  # key of the manifest: sha256 of every file of the run, except those of the report


def with_provenance(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the runs with the origin in the labels of imported ones, and baselines of one origin only."""
    origins = [origin(run) for run in runs]
    keeper = None if None in origins else next(iter(origins), None)
    found = []
    for run, name in zip(runs, origins, strict=True):
        if name != keeper:
            run = replace(run, scores=without_baselines(run.scores), others=without_baselines(run.others))
        found.append(run if name is None else run.named([provenance(name)]))
    return found


def origin(run: RunFolder) -> str | None:
    """Return where an imported run was made; None for the table's own runs."""
    found = run.manifest.get(IMPORTED)
    return str(found["origin"]) if found else None


def without_baselines(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores without baseline and oracle rows."""
    return scores.loc[~scores["label"].isin(BASELINES_AND_ORACLE)]


def import_notes(runs: Sequence[RunFolder]) -> Iterator[str]:
    """Yield a sentence for each imported row: its folder, device and versions."""
    seen = set()
    for run in runs:
        if (found := run.manifest.get(IMPORTED)) and (run.label, found["folder"]) not in seen:
            seen.add((run.label, found["folder"]))
            versions = run.manifest["versions"]
            packages = ", ".join(f"{name} {versions[name]}" for name in ("lorabench", "torch") if name in versions)
            places = "; ".join(run.manifest.get("computed_on") or ["an unknown device"])
            yield f"{run.label}: made elsewhere in {found['folder']}, with {packages}, on {places}."
