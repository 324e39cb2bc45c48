"""Small run folders with invented scores and images, for tests of reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from lorabench.report.folder import RunFolder
from lorabench.report.table import Table

PAIRS = [("mug_1", "halftone_1"), ("mug_1", "neon_1"), ("bird_1", "halftone_1"), ("bird_1", "neon_1")]
INDEPENDENT = [("mug_1", "halftone_1"), ("cat_1", "neon_1"), ("bird_1", "ink_1"), ("lamp_4", "gold_1")]
QUALITY = {"base": 0.2, "content_only": 0.4, "style_only": 0.35, "direct": 0.5, "duolora": 0.6, "oracle": 0.9}
METRICS = {
    "dino/content": "dino@micro",
    "clip_i/style": "clip@micro",
    "clip_t": "clip@micro",
    "subject_r1": "dino@micro",
}


def paint(*names: object) -> Image.Image:
    """Return an image in a single color that depends on the names."""
    color = np.random.default_rng([ord(c) for c in repr(names)]).integers(40, 230, 3)
    return Image.new("RGB", (64, 64), tuple(int(c) for c in color))


def make_run(
    folder: Path,
    method: str = "duolora",
    ablation: str = "none",
    pairs: Sequence[tuple[str, str]] = PAIRS,
    images: int = 3,
    seed: int = 0,
    oracle: bool = True,
    reference: str = "direct",
) -> Path:
    """Write a finished run with invented scores in the layout of the pipeline."""
    rows = []
    for row in ("base", "content_only", "style_only", method, *["oracle"] * oracle):
        variant = ablation if row == method else "none"
        for content, style in pairs:
            for image in range(images):
                path = folder / "images" / row / f"{content}+{style}" / f"{image:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                paint(row, content, style, image).save(path)
                for metric, backbone in METRICS.items():
                    # the same pair and image are difficult for all rows; pairing removes this shared part
                    shared = np.random.default_rng([ord(c) for c in content + style + metric] + [image])
                    own = np.random.default_rng([ord(c) for c in row + variant + content + style + metric] + [image])
                    for number in range(1 if metric == "clip_t" else 2):
                        value = QUALITY.get(row, 0.5) + 0.1 * shared.normal() + 0.01 * own.normal() + 0.01 * number
                        rows.append(
                            {
                                "dataset": "microworld",
                                "world": "1",
                                "content": content,
                                "style": style,
                                "prompt": f"a sks {content} in szn style",
                                "seed": 1000 * seed + image,
                                "image": image,
                                "method": row,
                                "ablation": variant,
                                "model": "micro",
                                "metric": metric,
                                "backbone": backbone,
                                "role": metric.split("/")[-1],
                                "reference": str(number),
                                "value": value,
                                "version": "1",
                            }
                        )
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet")
    for role, names in zip(("content", "style"), zip(*pairs, strict=True), strict=True):
        for name in set(names):
            (folder / "references" / role / name).mkdir(parents=True)
            for i in range(2):
                paint(role, name, i).save(folder / "references" / role / name / f"{i}.png")
    losses = {"total": list(np.geomspace(1, 0.1, 100)), "cycle": list(np.geomspace(0.3, 0.02, 100))}
    manifest = {
        "method": method,
        "ablation": ablation,
        "dataset": "microworld",
        "model": "micro",
        "seed": seed,
        "costs": {"learned_parameters": 12288, "merge_seconds": 11.4, "seconds_per_image": 0.31},
        "timings": {"personalize": 62.0, "merge": 45.6, "generate": 21.0, "score": 6.0},
        "versions": {"lorabench": "0.1.0", "torch": "2.15.0"},
        "files": {},
        "losses": {f"{content}+{style}": losses for content, style in pairs},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = {"method": {"name": method}, "seed": seed, "reference": reference, "generate": {"images": images}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def make_runs(folder: Path, *rows: str, reference: str = "direct") -> list[Path]:
    """Write a run on independent pairs for each row ("duolora no_cycle"), and return their folders."""
    names = [row.partition(" ") for row in rows]
    return [
        make_run(
            folder / f"{method}-{ablation or 'none'}", method, ablation or "none", INDEPENDENT, 2, reference=reference
        )
        for method, _, ablation in names
    ]


def make_table(folder: Path, *rows: str) -> Table:
    """Return the table of these runs."""
    return Table.of([RunFolder.load(run) for run in make_runs(folder, *rows)])


def read_table(folder: Path) -> pd.DataFrame:
    """Read table.csv without the rows of publications."""
    table = pd.read_csv(folder / "table.csv", index_col="method")
    return table.loc[~table.index.str.contains(" reported: ")].drop(columns="reported", errors="ignore")
