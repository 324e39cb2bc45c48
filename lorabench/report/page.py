"""report.html: one file that opens from disk, with every image in it and nothing fetched from anywhere.

The page is plain data (`content.py`) in a script block and scripts that draw it (web/*.js); what does not change with a
choice of the reader's is written by the template. Only scripts and styles of these hashes may run in it, and it may
open no connection at all, so a name that looks like markup stays a name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from lorabench.report.content import content, files_of, link
from lorabench.report.embed import EMBED, Shelf, embed
from lorabench.report.folder import RunFolder
from lorabench.report.layout import notes
from lorabench.report.table import Table

WEB = Path(__file__).with_name("web")
SCRIPTS = ("state", "pictures", "dialog", "filters", "table", "matrix", "axes", "plots", "galleries", "start")
RUN_FILES = (
    "config.yaml",
    "scores.parquet",
    "manifest.json",
    "table.md",
    "table.csv",
    "table.tex",
    "grid.png",
    "report.html",
)


def render(runs: list[RunFolder], table: Table, beside: Path | None = None) -> str:
    """The page of one run or of several together.

    beside: the folder that the page will lie in; runs in it or next to it are linked to.
    """
    environment = Environment(
        loader=PackageLoader("lorabench.report", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (WEB / "page.css").read_text(encoding="utf-8")
    script = "\n".join((WEB / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    methods = list(dict.fromkeys(run.label for run in runs))
    shelf = embed(
        [path for run in runs for path in files_of(run)], [run.rank_figure for run in runs if run.rank_figure]
    )
    data = content(runs, table, shelf, beside)
    return environment.get_template("page.html.j2").render(
        title=" · ".join(methods) if len(methods) < 3 else f"{len(methods)} methods on {runs[0].manifest['dataset']}",
        methods=methods,
        runs=[described(run, name, shelf, beside) for run, name in zip(runs, run_names(runs), strict=True)],
        manifest=runs[0].manifest,
        seeds=list(dict.fromkeys(run.manifest["seed"] for run in runs)),
        pairs=data["pairs"],
        names={f"{pair['content']}+{pair['style']}": f"{pair['content']} in {pair['style']}" for pair in data["pairs"]},
        notes=notes(table),
        has_costs=bool(data["costs"]),
        embed=EMBED,
        data=in_script(data),
        pictures=Markup("\n".join(shelf.texts)),  # base64 and a type of ours: neither can end a script
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {hash_of(style)}; script-src {hash_of(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def hash_of(text: str) -> str:
    """As a content security policy names what it lets through."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def in_script(data: Any) -> Markup:
    """JSON that cannot end the script block that it stands in.

    >>> print(in_script({"a": "</script>"}))
    {"a":"\\u003c/script>"}
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def described(run: RunFolder, name: str, shelf: Shelf, beside: Path | None) -> dict[str, Any]:
    """A run for the part of the page that says how it was made."""
    own = "report.html" if beside and run.path.resolve() == beside.resolve() else None  # not there before it is written
    return {
        "name": name,
        "label": run.label,
        "config": run.config,
        "timings": run.manifest.get("timings") or {},
        "versions": run.manifest.get("versions") or {},
        "losses": loss_curves(run),
        "ranks": drawing(run.rank_figure, shelf) if run.rank_figure else None,
        "files": {file: where for file in RUN_FILES if file != own and (where := link(run.path / file, beside))},
    }


def drawing(path: Path, shelf: Shelf) -> dict[str, int]:
    """A figure of the shelf with its size, so that its place is known before it is drawn."""
    with Image.open(path) as image:
        return {"picture": shelf.at[path], "width": image.width, "height": image.height}


def run_names(runs: list[RunFolder]) -> list[str]:
    """What tells the runs apart for a reader: label and seed, and the folder where those are the same."""
    names = [f"{run.label} seed {run.manifest['seed']}" for run in runs]
    return [
        f"{name} ({run.path.resolve().parent.name}/{run.path.resolve().name})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def loss_curves(run: RunFolder) -> dict[str, dict[str, dict]]:
    """Pair -> loss term -> first and last value and the points of a 120 x 32 polyline."""
    return {
        pair: {term: curve(values) for term, values in terms.items() if values} for pair, terms in run.losses.items()
    }


def curve(values: list[float]) -> dict[str, str]:
    """A polyline of one loss term over its own range; steps that are not finite are left out."""
    known = [(i, v) for i, v in enumerate(values) if math.isfinite(v)]
    low, high = (min(v for _, v in known), max(v for _, v in known)) if known else (0.0, 0.0)
    across, up = 116 / max(len(values) - 1, 1), 28 / (high - low or 1.0)
    points = " ".join(f"{2 + i * across:.1f},{30 - (v - low) * up:.1f}" for i, v in known)
    return {
        "points": points,
        "first": f"{values[0]:.3g}",
        "last": f"{values[-1]:.3g}",
        "steps": str(len(values)),
    }
