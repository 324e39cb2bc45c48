"""Rules for joining runs: which may share a table, and which may share a row.

Runs in one table must have the same model, recipe, references, scorers and sampling settings. Runs in one row may
differ only in seed and pairs. An image is identified by its pair, prompt and seed, so baseline images that several runs
share count once. Other differences are an error that names the keys. Runs of one method with different settings of the
method get separate rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorabench.base import UserError
from lorabench.config.schemas import ProtocolSpec
from lorabench.report.folder import Picture, RunFolder
from lorabench.report.headline import with_headline
from lorabench.report.imported import with_provenance
from lorabench.report.labels import BASELINES_AND_ORACLE
from lorabench.report.uses import joint_scores

ONE_VALUE = ["label", "dataset", "content", "style", "prompt", "seed", "metric", "backbone", "reference"]
ROUNDING = 1e-3  # largest score difference of an image between machines or batch sizes
OF_ALL = ("dataset", "generate", "lora", "model", "prompts", "trainer.precision")  # they affect all rows
OF_METHODS = ("method", "merge")
# Selection of pairs, scenes and images, which are matched by pair, prompt and seed; and paths of files.
COVERAGE = (
    "dataset.subjects", "dataset.styles", "dataset.contents", "dataset.pairs", "dataset.count", "dataset.pairs_seed",
    "dataset.root", "dataset.style_root", "dataset.manifest", "generate.images", "prompts.contexts",
    "lora.sample_every",
)  # fmt: skip
FILES = ("model.path", "model.config", "model.vae", "model.variant")  # compared by content digests, if known
LAST_DIGITS = ("generate.batch", "scorers.batch", "merge.pairs_per_batch", "model.attention")  # within ROUNDING
COST_ONLY = ("model.offload", "model.checkpointing")
INPUTS = "inputs"  # key of the manifest: digests of files and images


def load_runs(folders: Iterable[Path | str]) -> list[RunFolder]:
    """Load runs; labels of runs of one method contain the settings in which they differ.

    Raises:
        UserError: If a folder is not a finished run.
    """
    return distinguished(with_provenance([run for folder in folders for run in RunFolder.load_all(folder)]))


def distinguished(runs: list[RunFolder]) -> list[RunFolder]:
    """Return the runs with the settings in which runs of one label differ added to the label."""
    found = []
    for run in runs:
        alike = [other for other in runs if other.label == run.label]
        keys = dict.fromkeys(key for other in alike for key in differing(alike[0], other, OF_METHODS, missing=True))
        values = flat({"method": run.method, "merge": run.settings.get("merge")})
        found.append(run.named([f"{key.partition('.')[2]}={values.get(key)}" for key in keys]))
    return found


def join_scores(runs: list[RunFolder]) -> pd.DataFrame:
    """Join the scores of several runs in one table with a column `label`, and add the headline scores.

    Values that runs share appear once.

    Raises:
        UserError: If the runs are not comparable or have different values for the same image.
    """
    scores = pd.concat([run.scores.assign(run=number) for number, run in enumerate(runs)], ignore_index=True)
    for column in ("dataset", "world", "model"):
        if len(values := scores[column].astype(str).unique()) > 1:
            raise UserError(f"runs must have the same {column}, not {', '.join(values)}; use folders of one {column}")
    check_scorers(runs, scores)
    check_repeats(runs, scores)
    check_references(runs, scores)
    for run in runs[1:]:
        refuse(runs[0], run, differing(runs[0], run, OF_ALL), "cannot be compared")
    for _, alike in groupby(sorted(runs, key=lambda run: run.label), lambda run: run.label):
        first, *others = alike
        for run in others:
            keys = [*differing(first, run, OF_METHODS, missing=True), *other_scenes(first, run)]
            refuse(first, run, keys, f"cannot share the row {first.label}")
    return with_headline(scores.drop_duplicates(ONE_VALUE).drop(columns="run"))


def join_uses(runs: list[RunFolder], columns: ProtocolSpec, scores: pd.DataFrame) -> pd.DataFrame:
    """Join the scores that a protocol needs: of joint images, and of other uses if a column has one.

    Args:
        runs: The runs.
        columns: The protocol.
        scores: Result of `join_scores`.

    Raises:
        UserError: As `join_scores`.
    """
    others = [replace(run, scores=run.others) for run in runs if len(run.others)]
    if not others or all(column.use == "joint" for column in columns.columns):
        return scores
    return pd.concat([scores, join_scores(others)], ignore_index=True)


def refuse(one: RunFolder, two: RunFolder, keys: Sequence[str], why: str) -> None:
    """Raise a UserError if there are differing keys.

    Args:
        one, two: The runs.
        keys: Keys of the settings that differ.
        why: Words between the paths in the message.
    """
    if keys:
        raise UserError(f"{one.path} and {two.path} {why}: they differ in {', '.join(keys)}; use only one of them")


def check_scorers(runs: list[RunFolder], scores: pd.DataFrame) -> None:
    """Raise a UserError unless each metric has a backbone that all runs with the metric share, in one version."""
    for metric, backbones in scores.groupby("metric")["backbone"].unique().items():
        each = [set(run.scores.loc[run.scores["metric"] == metric, "backbone"]) for run in runs]
        if not set.intersection(*(known for known in each if known)):
            raise UserError(f"{metric} must have one backbone, not {' and '.join(backbones)}; use runs of one scorer")
    if "version" in scores:
        for (metric, backbone), versions in scores.groupby(["metric", "backbone"])["version"].unique().items():
            if len(versions) > 1:
                raise UserError(
                    f"{metric} was scored by different versions of {backbone} ({', '.join(map(str, versions))}); "
                    "run the older ones again"
                )


def check_references(runs: list[RunFolder], scores: pd.DataFrame) -> None:
    """Raise a UserError if runs scored a pair with different references, or a prompt with different texts."""
    at = ["content", "style", "prompt", "metric", "backbone"]
    known = scores.drop_duplicates([*at, "run", "reference"]).groupby([*at, "run"])["reference"].agg(frozenset)
    for (content, style, _, metric, _), per_run in known.groupby(level=at):
        if per_run.nunique() > 1:
            numbers = per_run.drop_duplicates().index.get_level_values("run")[:2]
            one, two = (runs[number] for number in numbers)
            counts = " and ".join(str(len(references)) for references in per_run.drop_duplicates()[:2])
            raise UserError(
                f"{one.path} and {two.path} cannot be compared: {metric} of {content}+{style} has different references "
                f"({counts}; dataset.references); use only one of them"
            )


def check_repeats(runs: list[RunFolder], scores: pd.DataFrame) -> None:
    """Raise a UserError if runs, numbered in the column `run`, have different values for the same image."""
    repeated = scores.loc[scores.duplicated(ONE_VALUE, keep=False)]
    first = repeated.groupby(ONE_VALUE, sort=False, dropna=False)[["run", "value"]].transform("first")
    other = repeated.index[np.abs(repeated["value"] - first["value"]) > ROUNDING]
    if other.empty:
        return
    name = repeated.at[other[0], "label"]
    one, two = (runs[each.at[other[0], "run"]] for each in (first, repeated))
    if keys := differing(one, two, OF_ALL if name in BASELINES_AND_ORACLE else (*OF_ALL, *OF_METHODS), missing=True):
        why = f"their configs differ in {', '.join(keys)}"
    else:
        why = "their configs agree, but code, weights or machine differ"
    raise UserError(f"{one.path} and {two.path} have different values in the row {name}: {why}; use only one of them")


def differing(one: RunFolder, two: RunFolder, groups: Sequence[str], missing: bool = False) -> list[str]:
    """Return the keys of these groups, and the names of the inputs, in which two runs differ.

    Args:
        missing: Count keys that only one run has.
    """
    left, right = (flat(run.settings | {"method": run.method}) for run in (one, two))
    starts = tuple(f"{group}." for group in groups)
    keys = [key for key in left | right if f"{key}.".startswith(starts) and (missing or (key in left and key in right))]
    inputs = one.manifest.get(INPUTS) or {}, two.manifest.get(INPUTS) or {}
    ignored = {*COVERAGE, *LAST_DIGITS, *COST_ONLY, *(FILES if all(inputs) else ())}
    found = [key for key in keys if key not in ignored and left.get(key) != right.get(key)]
    if groups[0] == OF_ALL[0]:
        found += [name for name in inputs[0] if name in inputs[1] and inputs[0][name] != inputs[1][name]]
    return found


def other_scenes(one: RunFolder, two: RunFolder) -> list[str]:
    """Return the key of the scenes if the rows of two runs have different prompts for a shared pair."""
    prompts = [
        joint_scores(run.scores[run.scores["label"] == run.label])
        .groupby(["content", "style"])["prompt"]
        .agg(frozenset)
        for run in (one, two)
    ]
    shared = prompts[0].index.intersection(prompts[1].index)
    return ["prompts.contexts"] if any(prompts[0][pair] != prompts[1][pair] for pair in shared) else []


def rounding_notes(runs: list[RunFolder]) -> Iterator[str]:
    """Yield a sentence for each differing setting that changes only the last digits."""
    values: dict[str, list[str]] = {}
    for run in runs:
        known = flat(run.settings)
        for key in LAST_DIGITS:
            if key in known:
                values.setdefault(key, []).append(str(known[key]))
        for place in run.manifest.get("computed_on", []):
            values.setdefault("the machine or its threads", []).append(place)
    for key, found in values.items():
        if len(distinct := list(dict.fromkeys(found))) > 1:
            yield f"Runs or their parts differ in {key} ({'; '.join(distinct)}), which changes last digits of scores."


def left_out_notes(runs: list[RunFolder]) -> Iterator[str]:
    """Yield a sentence if listed scenes were left out of the runs, because an encoder would cut them."""
    if scenes := list(dict.fromkeys(scene for run in runs for scene in run.manifest.get("left_out_scenes") or ())):
        yield f"Left out, because a text encoder would cut their prompts: {'; '.join(scenes)}."


def flat(values: Any) -> dict[str, Any]:
    """Flatten nested settings to dotted keys."""
    return pd.json_normalize([values]).to_dict("records")[0] if values else {}


def join_pictures(runs: list[RunFolder]) -> list[Picture]:
    """Return the images of several runs, each once."""
    unique: dict[tuple, Picture] = {}
    for picture in (picture for run in runs for picture in run.pictures):
        unique.setdefault(picture.identity, picture)
    return list(unique.values())
