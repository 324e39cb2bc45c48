"""Data of report.html: rows, columns, pairs and images, which the page's scripts filter, sort and show.

    columns, costs         {name, short, backbone, digits}; costs have only name and short
    rows                   {label, frame, run, scores: column -> line, costs, reported,
                            pairs: column -> pair -> [value, weight]}; frame: a baseline or oracle row
    pairs                  {content, style, prompts, references: role -> pictures}
    scored                 names of the scores of images
    images                 {row, pair, seed, index, prompt, noise, picture, file, scores}; scores: values in the order
                           of `scored`; file: null if it is the URL of the picture
    worst, disagreements   {image, kind, why} (report/galleries.py)

Rows, pairs, images and pictures refer to each other by list index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorabench.report import averages, galleries
from lorabench.report.embed import EmbeddedImages
from lorabench.report.folder import Picture, RunFolder
from lorabench.report.formats import format_cost
from lorabench.report.labels import BASELINES_AND_ORACLE, row_order
from lorabench.report.layout import by_cell, standings, with_verdict
from lorabench.report.links import link
from lorabench.report.protocols import Column
from lorabench.report.published import MARK
from lorabench.report.table import COSTS, PEAKS, Table

PairName = tuple[str, str]  # content, style


def content(runs: list[RunFolder], table: Table, embedded: EmbeddedImages, folder: Path | None) -> dict[str, Any]:
    """Return all data that the page's scripts need; web/state.js describes how they use it.

    Args:
        runs: Finished runs.
        table: Their table.
        embedded: Embedded images.
        folder: Folder of the page; None for a page without links.
    """
    pictures = [(run, picture) for run in runs for picture in run.pictures]
    labels = row_order([*table.labels, *(picture.label for _, picture in pictures)])
    pairs = described_pairs(runs, pictures, embedded)
    images = described_images(pictures, labels, list(pairs.values()), embedded, folder)
    metrics = list(dict.fromkeys(name for image in images for name in image["scores"]))
    of_methods = pd.DataFrame(
        {
            number: image["scores"]
            for number, image in enumerate(images)
            if labels[image["row"]] not in BASELINES_AND_ORACLE
        },
        index=metrics,
    ).T.dropna(axis=1, how="all")
    return {
        "reference": table.reference,
        "mark": MARK,
        "columns": [
            {
                "name": each.name,
                "short": each.name.removesuffix(f" {each.backbone}"),
                "backbone": each.backbone,
                "digits": each.digits,
            }
            for each in table.columns
        ],
        "costs": [{"name": cost, "short": COSTS[cost]} for cost in table.spent],
        "rows": described_rows(runs, table, labels, list(pairs)),
        "pairs": list(pairs.values()),
        "seeds": list(dict.fromkeys(image["seed"] for image in images)),
        "scored": metrics,
        "images": [{**image, "scores": [image["scores"].get(name) for name in metrics]} for image in images],
        "worst": [asdict(case) for case in galleries.worst(of_methods)],
        "disagreements": [asdict(case) for case in galleries.disagreements(of_methods)],
    }


def described_rows(
    runs: list[RunFolder], table: Table, labels: list[str], names: list[PairName]
) -> list[dict[str, Any]]:
    """Return one entry per table row: scores by column, costs, reported rows and values per pair."""
    first = {run.label: number for number, run in reversed(list(enumerate(runs)))}
    return [
        {
            "label": label,
            "frame": label in BASELINES_AND_ORACLE,
            "run": first.get(label),
            "scores": lines_of(table, label),
            "costs": {
                cost: {"value": cost_of(table, label, cost), "text": format_cost(table.spent, label, cost)}
                for cost in table.spent
                if label in table.spent.index
            },
            "reported": reported_of(table, label),
            "pairs": {
                column.name: by_pair(table.images[column.name][label], column, names)
                for column in table.columns
                if label in table.images[column.name]
            },
        }
        for label in labels
    ]


def lines_of(table: Table, label: str) -> dict[str, dict[str, Any]]:
    """Return column -> line of a row, without the keys that only locate the line."""
    return {
        name: {
            key: finite(value) for key, value in line.items() if key not in ("label", "metric", "backbone", "digits")
        }
        for (own, name), line in by_cell(table).items()
        if own == label
    }


def reported_of(table: Table, label: str) -> list[dict[str, Any]]:
    """Return the publications' rows that are shown below a row."""
    lines, letters = by_cell(table), standings(table)
    return [
        {
            "text": f"{each.text} ({letters[each.standing]})",
            "standing": each.standing,
            "values": {name: with_verdict(each, lines.get((label, name)), name) for name in table.backbones},
        }
        for each in table.reported.get(label, [])
    ]


def by_pair(images: pd.DataFrame, column: Column, names: list[PairName]) -> dict[int, list[Any]]:
    """Return pair index -> (value in the column, weight in the column's mean)."""
    values = {pair[1:]: own for pair, *own in averages.pair_values(images, *column.rule).itertuples()}
    return {number: [finite(each) for each in values[pair]] for number, pair in enumerate(names) if pair in values}


def cost_of(table: Table, label: str, cost: str) -> float | None:
    """Return a cost in the unit of its column (peaks in GiB, not bytes)."""
    value = finite(table.spent.at[label, cost])
    return value and (value / 2**30 if cost in PEAKS else value)


def described_pairs(
    runs: list[RunFolder], pictures: list[tuple[RunFolder, Picture]], embedded: EmbeddedImages
) -> dict[PairName, Any]:
    """Return the pairs with their prompts and references; references come from the first run that has them."""
    prompts: dict[PairName, dict[str, None]] = {}
    for _, p in pictures:
        prompts.setdefault((p.content, p.style), {})[p.prompt] = None
    pairs = {}
    for content, style in prompts:
        references = {}
        for role, name in (("content", content), ("style", style)):
            found = next((paths for run in runs if (paths := run.references(role, name))), [])
            references[role] = [embedded.at[path] for path in found]
        pairs[content, style] = {
            "content": content,
            "style": style,
            "prompts": list(prompts[content, style]),
            "references": references,
        }
    return pairs


def described_images(
    pictures: list[tuple[RunFolder, Picture]],
    labels: list[str],
    pairs: list[dict[str, Any]],
    embedded: EmbeddedImages,
    folder: Path | None,
) -> list[dict[str, Any]]:
    """Return each image once, ordered by row and pair; images of one prompt and seed have the same `index`.

    Args:
        pictures: Images with their runs.
        labels: Rows of the page, in order.
        pairs: Result of `described_pairs`.
        embedded: Embedded images.
        folder: Folder of the page; None for a page without links.
    """
    images, known = [], set()
    numbers: dict[
        tuple[int, str], dict[tuple[str, int], int]
    ] = {}  # (pair, seed of the run) -> (prompt, seed) -> index
    row_of = {label: number for number, label in enumerate(labels)}
    pair_of = {(pair["content"], pair["style"]): number for number, pair in enumerate(pairs)}
    for run, p in pictures:
        if p.identity in known:
            continue  # baseline and oracle images that several runs share
        known.add(p.identity)
        seed, pair = str(run.manifest["seed"]), pair_of[p.content, p.style]
        of_pair = numbers.setdefault((pair, seed), {})
        images.append(
            {
                "row": row_of[p.label],
                "pair": pair,
                "seed": seed,
                "index": of_pair.setdefault((p.prompt, p.seed), len(of_pair)),
                "prompt": pairs[pair]["prompts"].index(p.prompt),
                "noise": str(p.seed),  # exceeds the exact integers of JavaScript
                "picture": embedded.at[p.path],
                "file": url if (url := link(p.path, folder)) != embedded.texts[embedded.at[p.path]] else None,
                "scores": {name: round(value, 4) for name, value in p.values.items() if math.isfinite(value)},
            }
        )
    return sorted(images, key=lambda image: (image["row"], image["pair"]))


def files_of(runs: Sequence[RunFolder]) -> list[Path]:
    """Return the paths of all images of the page: the first reference of each concept, then by number of the image."""
    pictures = [(run, picture) for run in runs for picture in run.pictures]
    concepts = {(role, name): None for _, p in pictures for role, name in (("content", p.content), ("style", p.style))}
    references = [next((found for run in runs if (found := run.references(*each))), []) for each in concepts]
    shown = {p.identity: p for _, p in pictures[::-1]}  # baseline and oracle images of several runs once: the first
    in_order = sorted(shown.values(), key=lambda picture: picture.index)
    first, others = [each[:1] for each in references], [each[1:] for each in references]
    return [*chain(*first), *(picture.path for picture in in_order), *chain(*others)]


def finite(value: Any) -> Any:
    """Return a number with six significant digits for JSON, or None if it is not finite."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
