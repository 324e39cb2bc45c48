"""Measure the speed of DINO, CLIP-I, CLIP-T and CSD scoring against the loops of public scripts; see README.md.

python -m benchmarks.scoring
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

import lorabench.scoring.score  # noqa: F401  imported here, so that no round includes the import
from benchmarks.folder_scripts import Folder, FolderScripts
from benchmarks.measure import interleaved, markdown, new_file, publish, ratio, seconds
from lorabench.base import seed_of
from lorabench.config.schemas import TrainerSpec
from lorabench.data.concepts import Concept, Reference, Role
from lorabench.data.pairs import pair
from lorabench.data.scenes import Prompts
from lorabench.engine.artifact import Artifact
from lorabench.engine.make import make
from lorabench.engine.store import Store
from lorabench.engine.work import Progress
from lorabench.scoring.clip import Clip
from lorabench.scoring.csd import CSD
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.dino import Dino
from lorabench.scoring.files import ScorerSet, backbones
from lorabench.scoring.networks import build_network
from lorabench.tasks import jobs as tasks
from lorabench.tasks.score_jobs import SCORES
from lorabench.tasks.scores import Scoring

BACKBONES = {"dino": "dino@vits16", "clip": "clip@vitb32", "csd": "csd@vitl14"}
TRAINER = TrainerSpec(accelerator="cpu", precision="32-true", workers=0, threads=1)
TOLERANCE = 1e-4  # cosine difference from another order of fp32 sums
CPU = torch.device("cpu")
MEASURED = [(Dino, "features"), (Clip, "features"), (Clip, "embed_text"), (CSD, "features")]
PARTS = ("loading", "reading", "references", "images")  # parts of the scripts' time; the last two run networks


def copy_images(source: Path, folder: Path, progress: Progress) -> None:
    """Copy the images of a folder; the work of an artifact."""
    for path in source.glob("*.png"):
        shutil.copy(path, folder)


class Bench:
    """Images, weights and folders on disk.

    There are contents x styles x methods folders with `images` PNGs each, `references` photographs per content and one
    image per style.
    """

    def __init__(self, root: Path, files: dict[str, ScorerFiles], images: int, options: argparse.Namespace) -> None:
        self.root, self.files = root, files
        contents = [self.concept("content", i, options.references, options.side) for i in range(options.contents)]
        styles = [self.concept("style", i, 1, options.side) for i in range(options.styles)]
        self.pairs = [pair((content,), (style,), Prompts()) for content in contents for style in styles]
        self.cells = [(each, f"{each.name}-{method}") for each in self.pairs for method in range(options.methods)]
        for _, name in self.cells:
            for index in range(images):
                write_picture(root / name / f"{index:02d}.png", options.side, f"{name} {index}")
        self.count = images
        self.store = Store.open(root / "store")
        make(self.store, TRAINER, [self.images(name) for _, name in self.cells])

    def concept(self, role: Role, number: int, count: int, side: int) -> Concept:
        """Write the references of a concept and return it."""
        paths = [self.root / f"{role}_{number}" / f"{index:02d}.jpg" for index in range(count)]
        for path in paths:
            write_picture(path, side, str(path.relative_to(self.root)))
        references = tuple(
            Reference("mug", "a mug", hashlib.sha256(path.read_bytes()).hexdigest(), partial(Image.open, path))
            for path in paths
        )
        return Concept(f"{role}_{number}", role, "mug" if role == "content" else f"ink {number} style", (), references)

    def paths(self, concept: Concept) -> list[Path]:
        """Return the references of a concept."""
        return sorted((self.root / concept.name).glob("*.jpg"))

    def folders(self) -> dict[str, Folder]:
        """Return the folders that the scripts score, by name."""
        return {
            name: Folder(
                sorted((self.root / name).glob("*.png")),
                self.paths(each.contents[0]),
                self.paths(each.styles[0]),
                each.text,
            )
            for each, name in self.cells
        }

    def ours(self) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
        """Compute the artifacts of scores of each folder, starting without loaded networks and embeddings.

        Returns:
            The scores by folder, and the CPU seconds that the networks took.
        """
        tasks.load_scorer.cache_clear()
        for stage in ("embed", "score"):
            shutil.rmtree(self.store.root / stage, ignore_errors=True)
        scoring = Scoring(self.store, ScorerSet(tuple(self.files.values())), TRAINER, "", "", 32)
        scores = {name: scoring.score(name, each, self.images(name), range(self.count)) for each, name in self.cells}
        with networks_timed() as spent:
            make(self.store, TRAINER, list(scores.values()))
        return {name: pd.read_parquet(self.store.path(each) / SCORES) for name, each in scores.items()}, spent

    def images(self, name: str) -> Artifact:
        """Return the images of a folder as an artifact of the store."""
        return Artifact("generate", name, 1, {"folder": name}, partial(copy_images, self.root / name))

    def plain(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, float]]:
        """Score all folders with the scripts; return the metrics by folder and the CPU seconds by part."""
        scripts = FolderScripts(self.files)
        return {name: scripts.score(folder) for name, folder in self.folders().items()}, dict(scripts.seconds)

    def difference(self, ours: dict[str, pd.DataFrame], plain: dict[str, dict[str, torch.Tensor]]) -> float:
        """Return the largest difference of any value of the four metrics."""
        farthest = 0.0
        for each, name in self.cells:
            for metric, expected in plain[name].items():
                rows = ours[name][ours[name]["metric"] == metric]
                order = {r.sha256[:12]: i for c in each.concepts for i, r in enumerate(c.references)} | {each.text: 0}
                found = np.full(expected.shape, np.nan)
                columns = [order[reference] for reference in rows["reference"]]
                found[rows["image"], columns] = rows["value"]
                apart = np.nan_to_num(np.abs(found - expected.numpy()), nan=np.inf)  # infinite if ours lacks a value
                farthest = max(farthest, float(apart.max()))
        return farthest


@contextmanager
def networks_timed() -> Iterator[dict[str, float]]:
    """Measure the CPU time in our scorers' networks within this context."""
    spent = {"networks": 0.0}
    originals = [(cls, name, getattr(cls, name)) for cls, name in MEASURED]

    def wrapped(original: Any) -> Any:
        def run(*arguments: Any) -> Any:
            start = process_time()
            try:
                return original(*arguments)
            finally:
                spent["networks"] += process_time() - start

        return run

    for cls, name, original in originals:
        setattr(cls, name, wrapped(original))
    try:
        yield spent
    finally:
        for cls, name, original in originals:
            setattr(cls, name, original)


def write_picture(path: Path, side: int, name: str) -> None:
    """Write an image with structure at all scales, so that decoding takes as long as for a photograph."""
    rng = np.random.default_rng(seed_of(name))
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((side, side)), np.float32)
        for n in (4, 16, 64, max(side // 4, 1), side)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = np.array([4, 3, 2, 1, 0.3], np.float32)
    Image.fromarray((np.tensordot(weights / weights.sum(), np.stack(layers), 1)).astype(np.uint8)).save(path)


def random_weights(folder: Path) -> dict[str, ScorerFiles]:
    """Write random weights for the published backbones, scaled so that activations keep their magnitude."""
    found = {}
    for kind, name in BACKBONES.items():
        generator = torch.Generator().manual_seed(seed_of(name) % 2**31)
        state = {}
        for key, value in build_network(read_config(backbones()[name])).state_dict().items():
            drawn = torch.randn(value.shape, generator=generator)
            if value.ndim == 1 and key.endswith("weight"):
                drawn = 1 + 0.1 * drawn
            elif value.ndim > 1 and "embed" not in key.split(".")[0]:
                drawn *= value[0].numel() ** -0.5
            state[key] = drawn
        found[kind] = ScorerFiles(backbones()[name], folder / f"{kind}.safetensors")
        save_file(state, found[kind].weights)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure both sides and publish the table."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    settings = {
        key: getattr(options, key) for key in ("contents", "styles", "methods", "references", "side", "repeats")
    }
    facts: dict[str, Any] = settings | {"torch": torch.__version__, "backbones": list(BACKBONES.values())}
    lines = [", ".join(f"{key} {value}" for key, value in facts.items())]
    rows, spent = [], []
    with tempfile.TemporaryDirectory() as scratch:
        files = random_weights(Path(scratch))
        for images in options.images:
            bench = Bench(Path(scratch) / str(images), files, images, options)
            times, parts, farthest = measured(bench, options.repeats)
            if farthest > TOLERANCE:
                sys.exit(f"scores differ by {farthest:.1e}; the tolerance is {TOLERANCE}")
            total = images * len(bench.cells)
            speed = {name: total / median(each) for name, each in times.items()}
            scale = ratio(times["scripts"], times["ours"])
            shares = [f"{parts[part] / total:.2f}" for part in (*PARTS, "ours, networks", "ours, rest")]
            outside = (parts["loading"] + parts["reading"]) / parts["ours, rest"]
            rows.append(
                [str(images), f"{speed['ours']:.3f}", f"{speed['scripts']:.3f}", f"{scale:.2f}", f"{outside:.1f}"]
            )
            spent.append([str(images), *shares])
            facts[f"{images} images"] = {"seconds": times, "parts": parts, "difference": farthest, "scale": scale}
            lines.append(
                f"{images} images per folder, {len(bench.cells)} folders: scores differ by at most {farthest:.0e}"
            )
    head = ["images per folder", "ours, images/s", "scripts, images/s", "x scripts", "x scripts without networks"]
    lines.append(markdown(head, rows))
    head = ["CPU seconds per image", *(f"scripts: {part}" for part in PARTS), "ours: networks", "ours: the rest"]
    lines.append(markdown(head, spent))
    publish("\n\n".join(lines) + "\n", facts, options)


def measured(bench: Bench, repeats: int) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Return the seconds of each side's rounds, the scripts' seconds by part, and the largest score difference."""
    found: dict[str, Any] = {}

    def run(name: str) -> float:
        return seconds(lambda: found.__setitem__(name, bench.ours() if name == "ours" else bench.plain()), CPU)

    times = interleaved({name: lambda _, name=name: run(name) for name in ("scripts", "ours")}, repeats, warmup=0)
    (values, spent), (rows, own) = found["scripts"], found["ours"]
    parts = {part: sum(t for key, t in spent.items() if key.split(",")[0] == part) for part in PARTS}
    parts |= {"ours, networks": own["networks"], "ours, rest": times["ours"][-1] - own["networks"]}
    return times, spent | parts, bench.difference(rows, values)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 5, 10], help="images per folder")
    parser.add_argument("--contents", type=int, default=1)
    parser.add_argument("--styles", type=int, default=2)
    parser.add_argument("--methods", type=int, default=4, help="folders per pair")
    parser.add_argument("--references", type=int, default=5, help="references per content; a style has one")
    parser.add_argument("--side", type=int, default=1024, help="side of all images in pixels")
    parser.add_argument("--repeats", type=int, default=1, help="rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=new_file, help="markdown file to write")
    parser.add_argument("--json", type=new_file, help="JSON file to write with all numbers")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
