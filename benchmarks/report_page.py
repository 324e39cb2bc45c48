"""Measure the report of a large table: seconds of CPU, and the size of the page.

    python -m benchmarks.report_page --methods 44 --pairs 32 --images 8

The run folder has invented scores and rendered images of the microworld, each shifted by some pixels so that no two are
equal. It has the layout of task=compare.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from lorabench.data import microworld as mw
from lorabench.data.microworld_pairs import render
from lorabench.report import write_report

# references per image by metric and backbone, as in a run of the benchmark
METRICS = {
    ("dino/content", "dino@micro"): 4, ("dino/style", "dino@micro"): 4, ("csd/content", "csd@micro"): 4,
    ("csd/style", "csd@micro"): 4, ("clip_i/content", "clip@micro"): 4, ("clip_i/style", "clip@micro"): 4,
    ("clip_t", "clip@micro"): 1, ("clip_t/prompt", "clip@micro"): 1, ("subject_r1", "dino@micro"): 1,
    ("style_r1", "csd@micro"): 1, ("copy/content", "dino@micro"): 5, ("copy/style", "csd@micro"): 4,
    ("diversity", "dino@micro"): 1,
}  # fmt: skip
LEARNED = 7  # methods with loss curves
BASELINES = ("base", "content_only", "style_only", "oracle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("methods", 44), ("pairs", 32), ("images", 8)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--folder", type=Path, help="folder of the run, kept for another measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        pairs = list(zip(mw.HELDOUT_SUBJECTS, mw.HELDOUT_STYLES, strict=False))[: args.pairs]
        if not (folder / "manifest.json").is_file():
            make_run(folder, [f"method_{number}" for number in range(args.methods)], pairs, args.images)
        start, began = process_time(), perf_counter()
        write_report(folder)
        seconds, wall, size = process_time() - start, perf_counter() - began, (folder / "report.html").stat().st_size
        print(f"{args.methods} methods, {len(pairs)} pairs, {args.images} images each: {seconds:.1f} s of CPU "
              f"({wall:.1f} s), page of {size / 1e6:.1f} MB")  # fmt: skip


def make_run(folder: Path, methods: list[str], pairs: list[tuple[str, str]], images: int) -> None:
    """Write a run folder of several methods."""
    rows = [*BASELINES, *methods]
    shown = [np.asarray(render(mw.subject(a), mw.style(b), number)) for number, (a, b) in enumerate(pairs)]
    keys = []
    for (number, row), (at, (content, style)), image in product(enumerate(rows), enumerate(pairs), range(images)):
        path = folder / "images" / row / f"{content}+{style}" / f"{image:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(shown[at], (image, number), (0, 1))).save(path)
        keys.append((row, content, style, f"a sks {content} in szn style", image, 10**17 + at * images + image))
    known = pd.DataFrame(keys, columns=["method", "content", "style", "prompt", "image", "seed"])
    quality = known["method"].map({row: 0.01 * number for number, row in enumerate(rows)}).to_numpy()
    parts = []
    for (metric, backbone), references in METRICS.items():
        for reference in range(references):
            values = np.random.default_rng(len(parts)).normal(0.5, 0.1, len(known)) + quality
            if metric.endswith("_r1"):
                values = (values > 0.6).astype(float)
            parts.append(known.assign(metric=metric, backbone=backbone, role=metric.rpartition("/")[2],
                                      reference=str(reference), value=values))  # fmt: skip
    constant = {"dataset": "microworld", "world": "1", "ablation": "none", "model": "micro", "use": "joint"}
    scores = pd.concat(parts, ignore_index=True).assign(**constant, version="1")
    scores.to_parquet(folder / "scores.parquet", index=False)
    for at, (content, style) in enumerate(pairs):
        for role, name in (("content", content), ("style", style)):
            (folder / "references" / role / name).mkdir(parents=True)
            for index in range(4):
                picture = np.roll(shown[at], (index + 20, 3 if role == "style" else 7), (0, 1))
                Image.fromarray(picture).save(folder / "references" / role / name / f"{index}.png")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0}))
    losses = {f"{content}+{style}": {"total": list(np.geomspace(1, 0.1, 100))} for content, style in pairs}
    entries = [{"method": name, "ablation": "none", "settings": {}, "losses": losses if number < LEARNED else {},
                "costs": {"merge_seconds": 1.0}} for number, name in enumerate(methods)]  # fmt: skip
    manifest = {"rows": entries, "dataset": "microworld", "model": "micro", "seed": 0, "timings": {}, "files": {},
                "versions": {"lorabench": "0"}}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main()
