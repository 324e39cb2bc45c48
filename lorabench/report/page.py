"""report.html: one file that opens from disk, with every image in it and nothing fetched from anywhere."""

from __future__ import annotations

import base64
import io
import math
from functools import cache
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from lorabench.report import figures
from lorabench.report.folder import FRAMES, RunFolder, join_pictures
from lorabench.report.published import MARK
from lorabench.report.table import COSTS, Table, format_cost, format_reported, row_order

EMBED = 384  # pixels: larger images are shown reduced; the PNG itself lies beside the page


def render(runs: list[RunFolder], table: Table) -> str:
    """The page of one run or of several together."""
    environment = Environment(
        loader=PackageLoader("lorabench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # scores in the order of the table
    methods = list(dict.fromkeys(run.label for run in runs))
    rows = figures.grid_rows(runs)
    spent = table.spent
    named = list(zip(run_names(runs), runs, strict=True))
    return environment.get_template("page.html.j2").render(
        runs=named,
        title=" · ".join(methods) if len(methods) < 3 else f"{len(methods)} methods on {runs[0].manifest['dataset']}",
        methods=methods,
        backbones=table.backbones,
        columns=score_columns(table.lines),
        labels=table.labels,
        frames=FRAMES,
        reported=table.reported,
        mark=MARK,
        number=format_reported,
        cost_names=[COSTS[c] for c in spent],
        costs={name: [format_cost(spent, name, c) for c in spent] for name in spent.index if len(spent.columns)},
        footnotes=table.notes,
        grid=rows,
        groups=figures.column_groups(rows),
        pairs=pair_strips(runs),
        curves=[(name, loss_curves(run)) for name, run in named if run.losses],
        pair_names={f"{content}+{style}": f"{content} in {style}" for content, style in rows},
        uri=data_uri,
        figure=figure_uri,
    )


def run_names(runs: list[RunFolder]) -> list[str]:
    """What tells the runs apart for a reader: label and seed, and the folder where those are the same."""
    names = [f"{run.label} seed {run.manifest['seed']}" for run in runs]
    return [
        f"{name} ({run.path.resolve().parent.name}/{run.path.resolve().name})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def score_columns(lines: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """metric -> label -> texts and the whisker: start, width and dot in percent of the column's range."""
    columns: dict[str, dict[str, dict]] = {}
    for metric, column in lines.groupby("metric", sort=False):
        low, high = column[["mean", "low"]].min(axis=None), column[["mean", "high"]].max(axis=None)
        scale = 100 / (high - low) if high > low else 0.0
        columns[str(metric)] = {
            line["label"]: {
                "mean": f"{line['mean']:.{line['digits']}f}",
                "interval": ""
                if math.isnan(line["low"])
                else f"{line['low']:.{line['digits']}f} to {line['high']:.{line['digits']}f}",
                "dot": (line["mean"] - low) * scale,
                "start": 0.0 if math.isnan(line["low"]) else (line["low"] - low) * scale,
                "width": 0.0 if math.isnan(line["low"]) else (line["high"] - line["low"]) * scale,
                "unseparated": line.get("separated") is False,
            }
            for line in column.to_dict("records")
        }
    return columns


def pair_strips(runs: list[RunFolder]) -> dict[tuple[str, str], dict]:
    """(content, style) -> its prompts, references by role, and pictures by row in the order of the table."""
    pictures = join_pictures(runs)
    strips: dict[tuple[str, str], dict] = {}
    for label in row_order([p.label for p in pictures]):
        for p in (p for p in pictures if p.label == label):
            pair = strips.setdefault((p.content, p.style), {"prompts": {}, "rows": {}, "references": {}})
            pair["prompts"][p.prompt] = None
            pair["rows"].setdefault(label, []).append(p)
    for (content, style), pair in strips.items():
        for role, name in (("content", content), ("style", style)):
            found = next((paths for run in runs if (paths := run.references(role, name))), [])
            pair["references"][f"{role} reference"] = found
    return strips


def loss_curves(run: RunFolder) -> dict[str, dict[str, dict]]:
    """Pair -> loss term -> first and last value and the points of a 120 x 32 polyline."""
    return {
        pair: {term: curve(values) for term, values in terms.items() if values} for pair, terms in run.losses.items()
    }


def curve(values: list[float]) -> dict[str, str]:
    """A polyline of one loss term over its own range; steps that are not finite are left out."""
    finite = [(i, v) for i, v in enumerate(values) if math.isfinite(v)]
    low, high = (min(v for _, v in finite), max(v for _, v in finite)) if finite else (0.0, 0.0)
    across, up = 116 / max(len(values) - 1, 1), 28 / (high - low or 1.0)
    points = " ".join(f"{2 + i * across:.1f},{30 - (v - low) * up:.1f}" for i, v in finite)
    return {
        "points": points,
        "first": f"{values[0]:.3g}",
        "last": f"{values[-1]:.3g}",
        "steps": str(len(values)),
    }


def figure_uri(path: Path) -> str:
    """A drawing as it is: its lines and words would suffer from being reduced."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


@cache
def data_uri(path: Path) -> str:
    """An image as a data URI: the file's own bytes when it is small, reduced WebP otherwise."""
    with Image.open(path) as image:
        if max(image.size) <= EMBED:
            return figure_uri(path)
        small = image.convert("RGB")
    small.thumbnail((EMBED, EMBED), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
