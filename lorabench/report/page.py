"""report.html: one file that opens from disk and makes no network request. It is self-contained if it is not large.

The template writes the static parts. The scripts in web/*.js build the interactive parts from JSON data (`content.py`)
in a script block. The content security policy admits only the page's own scripts and styles, by hash, and no
connections, so names that look like markup are shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from lorabench.report.content import content, files_of
from lorabench.report.embed import EMBED, EmbeddedImages, embed
from lorabench.report.folder import RunFolder
from lorabench.report.layout import notes, planned_blocks
from lorabench.report.links import link
from lorabench.report.table import Table

WEB = Path(__file__).with_name("web")
SCRIPTS = ("state", "pictures", "dialog", "filters", "table", "matrix", "axes", "plots", "galleries", "start")
RUN_FILES = (
    "config.yaml",
    "scores.parquet",
    "manifest.json",
    "table.md",
    "table.csv",
    "comparisons.csv",
    "table.tex",
    "grid.png",
    "report.html",
)


def render(runs: list[RunFolder], table: Table, folder: Path | None = None) -> str:
    """Render the page of one or several runs.

    Args:
        runs: Finished runs.
        table: Their table.
        folder: Folder in which the page will be stored; files of runs in it or next to it get relative links.
    """
    style = (WEB / "page.css").read_text(encoding="utf-8")
    script = "\n".join((WEB / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    methods = list(dict.fromkeys(run.label for run in runs))
    figures = [run.rank_figure for run in runs if run.rank_figure]
    embedded = embed(files_of(runs), figures, lambda path: link(path, folder))
    data = content(runs, table, embedded, folder)
    return template("page.html.j2").render(
        title=" · ".join(methods) if len(methods) < 3 else f"{len(methods)} methods on {runs[0].manifest['dataset']}",
        methods=methods,
        runs=[described(run, name, embedded, folder) for run, name in zip(runs, run_names(runs), strict=True)],
        manifest=runs[0].manifest,
        seeds=list(dict.fromkeys(run.manifest["seed"] for run in runs)),
        pairs=data["pairs"],
        names={f"{pair['content']}+{pair['style']}": f"{pair['content']} in {pair['style']}" for pair in data["pairs"]},
        notes=notes(table),
        comparisons=planned_blocks(table),
        has_costs=bool(data["costs"]),
        embed=EMBED,
        linked=embedded.linked,
        data=in_script(data),
        pictures=Markup("\n".join(embedded.texts)),  # base64 and a fixed prefix: neither can end a script block
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )


def template(name: str) -> Template:
    """Return a template of the folder web; everything that it inserts is escaped."""
    environment = Environment(
        loader=PackageLoader("lorabench.report", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def policy(style: str, script: str) -> str:
    """Return the content security policy of a page with this style and script; images may be files next to it."""
    allowed = f"style-src {hash_of(style)}; script-src {hash_of(script)}"
    return f"default-src 'none'; img-src data: 'self' file:; {allowed}; base-uri 'none'; form-action 'none'"


def hash_of(text: str) -> str:
    """Return the hash source that a content security policy uses to admit a script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def in_script(data: Any) -> Markup:
    """Serialize to JSON that cannot end its script block.

    >>> print(in_script({"a": "</script>"}))
    {"a":"\\u003c/script>"}
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def described(run: RunFolder, name: str, embedded: EmbeddedImages, folder: Path | None) -> dict[str, Any]:
    """Return the data of a run for the section on how it was made.

    Args:
        run: The run.
        name: Its name on the page.
        embedded: Embedded images.
        folder: Folder of the page; None for a page without links.
    """
    own = "report.html" if folder and run.path.resolve() == folder.resolve() else None  # may not exist yet
    return {
        "name": name,
        "label": run.label,
        "config": run.config,
        "timings": run.manifest.get("timings") or {},
        "versions": run.manifest.get("versions") or {},
        "losses": loss_curves(run),
        "ranks": drawing(run.rank_figure, embedded) if run.rank_figure else None,
        "files": {file: url for file in RUN_FILES if file != own and (url := link(run.path / file, folder))},
    }


def drawing(path: Path, embedded: EmbeddedImages) -> dict[str, int]:
    """Return a figure's picture index and size; the size reserves its space before it is loaded."""
    with Image.open(path) as image:
        return {"picture": embedded.at[path], "width": image.width, "height": image.height}


def run_names(runs: list[RunFolder]) -> list[str]:
    """Return label and seed of each run, plus the folder if these are not unique."""
    names = [f"{run.label} seed {run.manifest['seed']}" for run in runs]
    return [
        f"{name} ({run.path.resolve().parent.name}/{run.path.resolve().name})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def loss_curves(run: RunFolder) -> dict[str, dict[str, dict]]:
    """Return pair -> loss term -> first and last value, and the points of a 120 x 32 polyline."""
    return {
        pair: {term: curve(values) for term, values in terms.items() if values} for pair, terms in run.losses.items()
    }


def curve(values: list[float]) -> dict[str, str]:
    """Return the polyline of one loss term, scaled to its own range; steps that are not finite are omitted."""
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
