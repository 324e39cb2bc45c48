"""task=tune: the weights of a content LoRA and a style LoRA that score best under the user's prompt.

    python run.py task=tune content=dog.safetensors style=crayon.safetensors prompt="a sks dog in szn style" trainer=gpu

Every pair of weights of a small grid is merged and sampled with the same noise. Images are compared with those of each
concept: the given ones (`content.images=`), or images that its LoRA makes of the same prompt by itself. Both scores are
put on a scale from the least (0) to the greatest (1) of all points, among which are both LoRAs by themselves. The point
with the largest smaller share is chosen, so that neither concept is lost, and its merge is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.data.concepts import ROLES, Reference, Role
from lorabench.engine.bar import Bar
from lorabench.engine.devices import claim_here, device_name
from lorabench.engine.output_folder import MANIFEST, OutputFolder, make_folder
from lorabench.engine.workers import use_threads
from lorabench.merging.method import Method, load
from lorabench.scoring.description import read_config
from lorabench.scoring.files import ScorerSet, scorer_set
from lorabench.tasks.file_request import Request, origin
from lorabench.tasks.files import check_rank
from lorabench.tasks.given_loras import user_loras
from lorabench.tasks.jobs import load_model, load_scorer
from lorabench.tasks.merge_files import check_file, merged
from lorabench.tasks.tradeoff import METRICS, check_metrics
from lorabench.tasks.tradeoff_curves import undominated
from lorabench.tasks.user_loras import UserPair

if TYPE_CHECKING:
    from lorabench.models.model import DiffusionModel
    from lorabench.scoring.scorer import Scorer

ALONE: dict[str, tuple[float, float]] = {"content only": (1.0, 0.0), "style only": (0.0, 1.0)}
FILE = "merged.safetensors"


@dataclass(frozen=True)
class Point:
    """A method with a weight of all contents and one of all styles."""

    method: str
    content: float
    style: float

    @property
    def folder(self) -> str:
        return f"{self.method}_{self.content:g}_{self.style:g}".replace(" ", "_")


def run(cfg: DictConfig, folder: Path) -> None:
    """Write tune.csv, tune.png, the images, and the chosen merge."""
    from PIL import Image

    from lorabench.report.tune import draw_tune

    typed: Any = {name: OmegaConf.to_object(cfg[name]) for name in ("model", "generate", "trainer", "task", "scorers")}
    task, trainer = typed["task"], typed["trainer"]
    use_threads(trainer.threads)
    own = UserPair(user_loras(cfg, "content"), user_loras(cfg, "style"), cfg.prompt)
    if not own.prompt:
        raise UserError("task=tune needs a prompt; use prompt='a sks dog in szn style'")
    methods = chosen_methods(task.methods, own)
    weights = checked_weights(task.weights)
    check_rank(task.rank)
    scorers = scorer_set(typed["scorers"])
    metrics: dict[Role, str] = {"content": task.content, "style": task.style}
    check_metrics(metrics, scorers)
    output = OutputFolder(Path(cfg.output), "output=<an empty folder>")
    make_folder(output.path)
    output.check()
    points = [Point(name, content, style) for name in methods for content in weights for style in weights]
    job = Request(
        "", own, next(iter(methods.values())), typed["model"], typed["generate"], trainer, task, Path(cfg.store),
        cfg.seed,
        output.path / FILE,
    )  # fmt: skip
    job.check_sampling()
    with claim_here(trainer.accelerator), Bar(1.0 + len(points) + 2 * len(ROLES), "tune") as bar:
        found = Tuning(job, methods, metrics, networks(metrics, scorers, trainer), bar)
        images = found.images(points)
        table = shares(found.scores(images))
    best = chosen(table)
    job = replace(job, name=best.method, method=methods[best.method], settings=methods[best.method].settings,
                  own=weighted(own, best.content, best.style))  # fmt: skip
    with output.filled() as draft:
        job = replace(job, output=draft / FILE)
        found.merge(best).save(job.output, origin(job), task.format, None if task.dtype == "same" else task.dtype)
        for point, shown in images.items():
            (draft / "images" / point.folder).mkdir(parents=True)
            for index, image in enumerate(shown):
                Image.fromarray(image).save(draft / "images" / point.folder / f"{index:02d}.png")
        table.to_csv(draft / "tune.csv", index=False, float_format="%.6g")
        draw_tune(table, {point: shown[0] for point, shown in images.items()}, best, metrics, draft / "tune.png")
        made = {"task": "tune", "method": best.method, "weights": [best.content, best.style], "prompt": own.prompt}
        (draft / MANIFEST).write_text(json.dumps(made))
    print("\n".join(lines(table, metrics)))
    print(f"chosen: method={best.method} weights=[{best.content:g},{best.style:g}]")
    print(output.path / FILE)


def chosen_methods(names: Sequence[str], own: UserPair) -> dict[str, Method]:
    """Return the methods; UserError if one of them learns, or makes no file."""
    if not names:
        raise UserError("task.methods is empty; use task.methods=[direct]")
    methods = {name: load(name) for name in names}
    for name, method in methods.items():
        check_file(method)
        if method.merge.needs_model:
            raise UserError(f"{name} learns its merge, which takes minutes per point; use task.methods=[direct,ties]")
        own.check(method)
    return methods


def checked_weights(weights: Sequence[float]) -> list[float]:
    """Return the weights in order, each once; UserError unless there are several, all greater than 0."""
    found = sorted({float(weight) for weight in weights})
    if len(found) < 2 or found[0] <= 0:
        raise UserError(f"task.weights={list(weights)} must be several numbers above 0; use task.weights=[0.5,0.75,1]")
    return found


def weighted(own: UserPair, content: float, style: float) -> UserPair:
    """Return a pair with one weight for all contents and one for all styles."""
    return own.weighted([content] * len(own.contents) + [style] * len(own.styles))


def networks(metrics: Mapping[Role, str], scorers: ScorerSet, trainer: TrainerSpec) -> dict[Role, Scorer]:
    """Return the scorer of each metric, the first of its kind."""
    by_kind = {METRICS[read_config(files.config)["kind"]]: files for files in reversed(scorers.scorers)}
    device = device_name(trainer.accelerator)
    return {role: load_scorer(by_kind[metric.partition("/")[0]], device) for role, metric in metrics.items()}


@dataclass(frozen=True)
class Tuning:
    """The merges, images and scores of points."""

    job: Request
    methods: Mapping[str, Method]
    metrics: Mapping[Role, str]
    scorers: Mapping[Role, Scorer]
    bar: Bar

    @property
    def model(self) -> DiffusionModel:
        return load_model(self.job.files, self.job.trainer.accelerator)

    def merge(self, point: Point) -> Any:
        """Return the merge of a point as one LoRA, cut to `task.rank` if it is set."""
        job, own = self.job, weighted(self.job.own, point.content, point.style)
        file = merged(own, self.methods[point.method], job.model, job.seed, job.trainer, refused).file
        rank = job.task.rank
        return file if rank is None else file.compressed(None if rank == "auto" else rank, job.task.keep)[0]

    def images(self, points: Sequence[Point]) -> dict[Point, np.ndarray]:
        """Return uint8 images [n, H, W, 3] of both LoRAs by themselves and of every point, with the same noise."""
        prompt, count = self.job.own.prompt, self.job.generation.images
        seeds = [seed_of("image", prompt, index, self.job.seed) for index in range(count)]
        found = {Point(name, *weights): self.alone(role, seeds) for (name, weights), role in
                 zip(ALONE.items(), ROLES, strict=True)}  # fmt: skip
        for point in points:
            found[point] = self.drawn([self.merge(point)], seeds)
        return found

    def alone(self, role: Role, seeds: Sequence[int]) -> np.ndarray:
        """Return images by the LoRAs of one role."""
        own = self.job.own.contents if role == "content" else self.job.own.styles
        return self.drawn([each.read(self.job.model) for each in own], seeds)

    def drawn(self, loras: Sequence[Any], seeds: Sequence[int]) -> np.ndarray:
        from lorabench.sampling.generate import generate

        spec: GenerateSpec = self.job.generation
        prompts, start = [self.job.own.prompt or ""] * len(seeds), self.bar.reached
        images = generate(self.model, loras, prompts, seeds, spec, self.job.trainer,
                          progress=lambda done: self.bar.reach(start + done / len(seeds)))  # fmt: skip
        self.bar.reach(start + 1)
        return images

    def references(self, role: Role) -> list[np.ndarray | Path | Reference]:
        """Return the given images of a role's concepts, or images by its LoRAs with noise of their own."""
        own = self.job.own.contents if role == "content" else self.job.own.styles
        if given := [image for each in own if each.images for image in each.references()]:
            return [*given]
        seeds = [seed_of("reference", role, self.job.own.prompt, index, self.job.seed)
                 for index in range(self.job.generation.images)]  # fmt: skip
        return [*self.alone(role, seeds)]

    def scores(self, images: Mapping[Point, np.ndarray]) -> pd.DataFrame:
        """Return a row per point: method, weights, and the mean cosine to the references of each role."""
        from lorabench.scoring.embeddings import embed_images

        rows = [{"method": point.method, "content_weight": point.content, "style_weight": point.style}
                for point in images]  # fmt: skip
        for role in ROLES:
            [goal] = embed_images(self.references(role), [self.scorers[role]], 32)
            for row, shown in zip(rows, images.values(), strict=True):
                [found] = embed_images([*shown], [self.scorers[role]], 32)
                row[self.metrics[role]] = float((found.rows[role] @ goal.rows[role].T).mean())
        return pd.DataFrame(rows).rename(columns={self.metrics[role]: f"{role}_score" for role in ROLES})


def refused(*_: Any) -> Any:
    """Raise an error: the teacher of merges that need no images."""
    raise AssertionError("a merge without the model asked for images")


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Add content and style from 0 (least of all points) to 1 (greatest), and which points no other dominates."""
    for role in ROLES:
        score = table[f"{role}_score"]
        spread = score.max() - score.min()
        table[role] = (score - score.min()) / spread if spread else 1.0
    return table.assign(front=undominated(table))


def chosen(table: pd.DataFrame) -> Point:
    """Return the point of the grid whose smaller share is largest; of equal ones that with the larger sum."""
    grid = table.loc[~table["method"].isin(ALONE)]
    order = grid.assign(least=grid[list(ROLES)].min(axis=1), both=grid[list(ROLES)].sum(axis=1))
    best = order.sort_values(["least", "both"], ascending=False, kind="stable").iloc[0]
    return Point(best["method"], float(best["content_weight"]), float(best["style_weight"]))


def lines(table: pd.DataFrame, metrics: Mapping[Role, str]) -> list[str]:
    """Return the table as text; * marks points that no other dominates."""
    width = max(map(len, table["method"]))
    found = [f"{'method':<{width}}  content  style  {metrics['content']:>12}  {metrics['style']:>12}"]
    for row in table.to_dict("records"):
        found.append(
            f"{row['method']:<{width}}  {row['content_weight']:7g}  {row['style_weight']:5g}  "
            f"{row['content_score']:12.3f}  {row['style_score']:12.3f} {'*' if row['front'] else ''}".rstrip()
        )
    return found
