"""task=calibration: test whether metrics rank images as the ground truth does, on the microworld, which has one.

The world renders every subject of the dataset in every style of it, each with a pose of its own, and photographs each
subject. Each subject and style is then an *anchor*. Its references are those of the benchmark (photographs of the
subject, or images of other things in the style), and the value of an image is its mean cosine with them, as in a table.
The anchors of CLIP-T are the sentences of the pairs. Nothing is trained or sampled. calibration_figures.py has the
figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts
from lorabench.engine.devices import claim_here
from lorabench.tasks.calibration_figures import calibrate
from lorabench.tasks.calibration_world import TEXT, Metric, World

if TYPE_CHECKING:
    from lorabench.scoring.scorer import Scorer

Pictures = tuple[list[np.ndarray], list[np.ndarray]]  # renderings of the pairs, photographs of the subjects
LEAST = 3  # minimum number of subjects and of styles for ranks


def run(cfg: DictConfig, folder: Path) -> str:
    """Write calibration.csv, calibration.md and calibration.png, and print the tables."""
    from lorabench.engine.devices import device_name
    from lorabench.engine.workers import use_threads
    from lorabench.report.calibration import draw_calibration, write_calibration
    from lorabench.scoring.files import scorer_set
    from lorabench.tasks.jobs import load_scorer

    if not isinstance(spec := OmegaConf.to_object(cfg.dataset), MicroworldSpec):
        raise UserError("calibration needs ground truth, which only the microworld has; use dataset=microworld")
    use_threads(cfg.trainer.threads)
    world, pairs = world_of(spec, Prompts(**cfg.prompts))
    typed: object = OmegaConf.to_object(cfg.scorers)
    device = device_name(cfg.trainer.accelerator)
    with claim_here(cfg.trainer.accelerator):
        files = scorer_set(typed)  # pyright: ignore[reportArgumentType]
        shown = pictures(world, pairs)
        measured = list(measure(world, pairs, shown, [load_scorer(each, device) for each in files.scorers]))
        if files.reader:
            measured += readings(world, shown, load_scorer(files.reader, device))
        measured += ideals(world)
    found = pd.concat([calibrate(metric, world, cfg.task.holds) for metric in measured], ignore_index=True)
    found.to_csv(folder / "calibration.csv", index=False, float_format="%.6g")
    text = write_calibration(found, world.grid, len(world.subjects[0].images), cfg.task.holds)
    (folder / "calibration.md").write_text(text, encoding="utf-8")
    draw_calibration(found, folder / "calibration.png")
    print(text)
    return "calibration.png"


def world_of(spec: MicroworldSpec, prompts: Prompts) -> tuple[World, list[Pair]]:
    """Return the world of the dataset's subjects and styles, and its pairs in the order of the subjects.

    Raises:
        UserError: If there are too few, or if a pair has several subjects or styles.
    """
    from lorabench.data.catalogue import load_pairs

    pairs = load_pairs(spec, prompts)
    if not all(pair.is_single for pair in pairs):
        raise UserError("calibration needs one subject and one style per pair; remove dataset.contents and +")
    subjects, styles = (list({pair.of(role)[0].name: pair.of(role)[0] for pair in pairs}.values()) for role in ROLES)
    for key, found in (("subjects", subjects), ("styles", styles)):
        if len(found) < LEAST:
            raise UserError(f"dataset.{key} has {len(found)}, too few to rank; use {LEAST} or more, of several kinds")
    if len(pairs) != len(subjects) * len(styles):
        raise UserError("calibration renders every subject in every style; use dataset.pairs=crossed")
    return World.of(subjects, styles), pairs


def measure(world: World, pairs: Sequence[Pair], shown: Pictures, scorers: Sequence[Scorer]) -> Iterator[Metric]:
    """Yield every metric of every scorer on the images of `pictures`."""
    from lorabench.scoring.clip import Clip
    from lorabench.scoring.embeddings import TEXT as TEXTS
    from lorabench.scoring.embeddings import embed_images, embed_texts

    renderings, photographs = shown
    for scorer in scorers:
        rendered, photographed = scorer.embed(renderings), scorer.embed(photographs)
        for role in scorer.roles:
            anchors = world.subjects if role == "content" else world.styles
            references = [embed_images(anchor.references, [scorer], 1)[0].rows[role] for anchor in anchors]
            # the mean cosine with unit rows is the product with their mean
            means = [rows.mean(dim=0) for rows in references]
            on = {
                name: np.stack([(rows[role] @ mean).numpy() for mean in means])
                for name, rows in (("renderings", rendered), ("photographs", photographed))
            }
            yield Metric(
                f"{scorer.metric}/{role}", scorer.name, role, on["renderings"].reshape(-1, *world.grid),
                on["photographs"].reshape(len(anchors), len(world.subjects), -1),
            )  # fmt: skip
        if isinstance(scorer, Clip):
            texts = dict(sorted(zip(world.anchors(TEXT).ravel().tolist(), (pair.text for pair in pairs), strict=True)))
            rows = embed_texts(list(texts.values()), scorer).rows[TEXTS]
            values = np.stack([(rendered["content"] @ row).numpy() for row in rows])
            yield Metric(scorer.text_metric, scorer.name, TEXT, values.reshape(-1, *world.grid))


def pictures(world: World, pairs: Sequence[Pair]) -> Pictures:
    """Return the renderings of the pairs and the photographs of the subjects, uint8 [h, w, 3] each."""
    from lorabench.data.microworld_pairs import oracle
    from lorabench.scoring.preprocess import to_uint8

    photographs = [to_uint8(image.load()) for subject in world.subjects for image in subject.images]
    return [to_uint8(oracle(pair, 0)) for pair in pairs], photographs


def readings(world: World, shown: Pictures, reader: Scorer) -> list[Metric]:
    """Return the truth scores, which read the factors from the images of `pictures`."""
    from lorabench.scoring.description import FACTORS
    from lorabench.scoring.factors import content_distances, read, style_distances

    rendered, photographed = (read(reader.embed(some)[FACTORS]) for some in shown)
    found = []
    for role, anchors, distances in (
        ("content", world.subjects, content_distances),
        ("style", world.styles, style_distances),
    ):
        of = [
            np.stack([1 - distances(some, each.factors).numpy() for each in anchors])
            for some in (rendered, photographed)
        ]
        found.append(
            Metric(
                f"truth/{role}", reader.name, role, of[0].reshape(-1, *world.grid),
                of[1].reshape(len(anchors), len(world.subjects), -1),
            )
        )  # fmt: skip
    return found


def ideals(world: World) -> list[Metric]:
    """Return the metrics that equal the ground truth: the upper bound of every figure."""
    subjects, styles = world.grid
    content = np.broadcast_to(-world.content[:, :, None], (subjects, subjects, styles))
    style = np.broadcast_to(-world.style[:, None, :], (styles, subjects, styles))
    return [
        Metric("truth/content", "the factors", "content", content, -world.content[:, :, None]),
        Metric(
            "truth/style", "the factors", "style", style, np.full((styles, subjects, 1), -1.0)
        ),  # a photograph is in no style
        Metric("truth/text", "the factors", TEXT, -world.text),
    ]
