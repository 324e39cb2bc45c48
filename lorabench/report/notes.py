"""The paragraphs below a table: the numbers of images and pairs, and the tests."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lorabench.report import averages, comparing, headline, planned
from lorabench.report.clusters import Design
from lorabench.report.folder import RunFolder
from lorabench.report.protocols import Column

IMAGE = ("prompt", "seed")
SCORE = ("metric", "backbone", "reference", "value")


def footnotes(
    lines: pd.DataFrame,
    comparisons: pd.DataFrame,
    scores: pd.DataFrame,
    columns: list[Column],
    reference: str | None,
) -> list[str]:
    """Return the paragraphs below the table.

    Args:
        lines: Lines of the table.
        comparisons: Planned comparisons.
        scores: Scores of all runs.
        columns: Columns of the table.
        reference: Row for differences.
    """
    pairs = lines["pairs"].tolist()
    backbones = list(dict.fromkeys(name for names in lines["backbone"] for name in names.split(headline.JOIN)))
    rules = {column.rule[0] for column in columns}
    order = "; averaged by reference, image, pair in this order" if rules == {"pair"} else ""
    images = f"{span(lines['images'].tolist())} images per row{order}"
    behind, units = design_notes(scores)
    notes = [f"Mean over {span(pairs)} pairs{behind} ({images}) with a 95 % bootstrap interval over {units}."]
    if max(pairs) == 1:
        notes = [f"One pair ({images}), so there are no intervals; use 6 or more pairs."]
    elif (fewest := fewest_units(lines)) < 6:
        notes[0] += (
            f" With {fewest} independent units, intervals cannot exceed their range and are too narrow; use 6 or more."
        )
    used = {(column.spec.metric, column.backbone) for column in columns}
    shown = [of in used for of in zip(scores["metric"], scores["backbone"], strict=True)]
    cells = scores[shown].groupby(["metric", "label"])[[*averages.PAIR, "prompt"]]
    covered = cells.apply(lambda pairs: frozenset(pairs.drop_duplicates().itertuples(index=False, name=None)))
    if any(covered.groupby(level="metric").nunique() > 1):
        notes[0] += " Rows average over different pairs or prompts, so their means are not comparable."
    notes.append(f"Scored by {', '.join(backbones)}.")
    if any(name.endswith("@micro") for name in backbones):
        notes[1] += (
            " These are small scorers trained on the microworld; "
            "their scores are not comparable with those of published backbones."
        )
    notes += [*headline.notes(lines, scores), *column_notes(lines), *equal_notes(scores)]
    if comparisons["p"].notna().to_numpy().any():
        notes.append(planned_note(comparisons, reference))
    if lines["rank"].notna().to_numpy().any():
        notes.append("Rank 1 has the largest mean over the images that all methods share; intervals of ranks are 95 %.")
    return notes


def column_notes(lines: pd.DataFrame) -> list[str]:
    """Return descriptions of the columns of copying and diversity, and the missing scores of the ground truth."""
    shown, found = set(lines["metric"]), []
    if {"copy/content", "copy/style", "diversity"} & shown:
        found.append(
            "copy/...: similarity of an image to the nearest training image of the subject or style; a LoRA that is "
            "far above the oracle repeats its training images. diversity: 1 - mean similarity of the images of one "
            "prompt."
        )
    if {"clip_t/photo", "ground_acc"} & shown:
        found.append(
            "clip_t/photo and ground_acc: of photographs, which are generated with the subject's LoRA only; whether "
            "they show the scene that the prompt asks for."
        )
    if {"truth/content", "truth/style"} & shown:
        found.append(
            "truth/content and truth/style: 1 - distance of the factors that a network reads from the image to the "
            "true ones. The network errs too, so the ceiling is the value of the oracle."
        )
    return found


def equal_notes(scores: pd.DataFrame) -> list[str]:
    """Return a sentence for rows that have the same images: all their scores are equal."""
    alike: dict[bytes, list[str]] = {}
    for name, mine in scores.groupby("label", sort=False):
        hashes = pd.util.hash_pandas_object(mine[[*averages.PAIR, *IMAGE, *SCORE]].astype(str), index=False)
        alike.setdefault(np.sort(hashes.to_numpy()).tobytes(), []).append(str(name))
    return [f"{', '.join(names)}: these rows have the same images." for names in alike.values() if len(names) > 1]


def planned_note(comparisons: pd.DataFrame, reference: str | None) -> str:
    """Return how the planned comparisons are tested."""
    tested = comparisons[comparisons["p"].notna()]
    sizes = tested.groupby(["family", "metric"], sort=False).size().groupby(level="family", sort=False).agg(list)
    families = ", ".join(
        f"{planned.published_orders(str(family)) or span(counts)} {family}" for family, counts in sizes.items()
    )
    mark = f"~ not separated from {reference}" if planned.METHODS in sizes else "~ not separated"
    return (
        f"{mark}: a t test of the differences, paired by (pair, prompt, seed), has p above {comparing.ALPHA:g} after "
        f"Holm's correction within the family and the column ({families}). Errors are clustered if pairs share "
        "subjects or styles. If the differences of all pairs are equal, it is a sign test. Differences that were not "
        "planned are not tested. Intervals of differences are 95 % each, without correction."
    )


def cost_note(runs: list[RunFolder]) -> str:
    """Return what the costs of merges include, and over what they are taken."""
    text = (
        "Merge costs do not include training LoRAs that methods share, nor a backbone that all pairs share, but "
        "include training for a single pair. They are per pair; memory is the maximum over the pairs."
    )
    together = max(int((run.settings.get("merge") or {}).get("pairs_per_batch", 1)) for run in runs)
    if together > 1:
        text += f" Masks are learned for up to {together} pairs at a time, and their memory is that of these pairs."
    return text


def layer_notes(runs: list[RunFolder]) -> list[str]:
    """Return a sentence on the layers that LoRAs are trained on, if they are not all attention projections."""
    recipe = runs[0].settings.get("lora") or {}  # the same in all runs of a table
    chosen = {"targets": recipe.get("targets", "attention"), "blocks": ",".join(recipe.get("blocks") or ())}
    named = [f"lora.{key}={value}" for key, value in chosen.items() if value not in ("", "attention")]
    return [f"LoRAs are trained on the layers of {' and '.join(named)}."] if named else []


def merge_notes(runs: list[RunFolder]) -> list[str]:
    """Return the sentences on merges that their manifests have."""
    return [f"{run.label}: {run.manifest['note']}." for run in runs if run.manifest.get("note")]


def seen_notes(runs: list[RunFolder]) -> list[str]:
    """Return a sentence for each row whose merge was trained on subjects or styles of its pairs."""
    found = {run.label: run.manifest["trained_on"] for run in runs if run.manifest.get("trained_on")}
    return [
        f"{label} was trained on {', '.join(names)} of these pairs, so its scores there are not those of new concepts."
        for label, names in found.items()
    ]


def design_notes(scores: pd.DataFrame) -> tuple[str, str]:
    """Return the numbers of subjects and styles behind the means, and the names of the resampled units."""
    pairs = scores[["content", "style"]].drop_duplicates()
    design = Design.of(pd.MultiIndex.from_frame(pairs))
    shared = {"content": "subjects", "style": "styles"}
    of = " and ".join(f"{len(set(pairs[role]))} {name}" for role, name in shared.items())
    resampled = [shared[role] for role in design.shared]
    together = " resampled together (product bootstrap)" if len(resampled) == 2 else ""
    return f" of {of}", (" and ".join(resampled) or "pairs") + together


def fewest_units(lines: pd.DataFrame) -> int:
    """Return the smallest number of independent units behind a mean; a concept that all pairs share does not count."""
    counts = lines[["contents", "styles"]].where(lines[["contents", "styles"]] > 1)
    return int(np.fmin(counts.min(axis=1), lines["pairs"]).min())


def span(counts: list[int]) -> str:
    """Format a count, or its range if rows differ.

    >>> span([4, 4]), span([4, 2])
    ('4', '2 to 4')
    """
    least, greatest = min(counts), max(counts)
    return str(least) if least == greatest else f"{least} to {greatest}"
