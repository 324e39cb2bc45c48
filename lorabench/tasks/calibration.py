"""Do the metrics order images as the truth does? Answered on the microworld, where the truth is known.

The world draws every subject of the dataset in every style of it, in a pose of its own, and photographs each subject.
Each subject and style is then an *anchor*: its references are those of the benchmark, photographs of the subject,
pictures of other things in the style, and an image's value is its mean cosine with them, as in a table. The anchors of
CLIP-T are the sentences of the pairs. Nothing is trained or sampled.

**True distances.** Of two subjects, two styles: `content_distance` and `style_distance` of
lorabench/data/microworld/factors.py, from the factors that the world draws from. Both are 0 for the same individual
alone, grow with each factor, and give one half to the class (family), since who sees a teapot instead of a mug sees
another thing whatever its colour, and the other half to what identity is made of: proportions, colours, mark (hues,
texture, lines, ground). The one choice in it is the weight of the halves, so correlations are also given within the
anchor's class (family), where it plays no part. A sentence names class and family only; its distance to an image is
the share of the two that the image has wrong.

**Rank correlation** of value and negative distance over all drawings, for each anchor; the mean over anchors with a
bootstrap over them. **Leakage**: of the variance of the values of an anchor over the grid of subjects and styles, the
shares that the subject explains, the style, and both together beyond their sum (with what pose adds). A content metric
that sees content alone has 1, 0, 0.

**Known answers**, for each pair of a subject and a style:

    perfect        this subject in this style, what the oracle row of a table is
    content_only   this subject in another style
    photograph     this subject, photographed
    style_only     another subject in this style
    swapped        another subject in another style

A content metric must put the first three above the last two, a style metric `perfect` and `style_only` above the
others, a sentence must be met best by the first and worst by the last. How often it does, for others of another class
(family) and, the harder case, of the same one; it passes where that share is at least `task.holds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from scipy.stats import kendalltau, spearmanr

from lorabench.base import UserError
from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.data.pairs import ROLES, Concept, Pair, Prompts
from lorabench.engine.devices import claim_here
from lorabench.report import stats

if TYPE_CHECKING:
    from lorabench.scoring.scorer import Scorer

LEAST = 3  # subjects and styles; fewer have no ranks
TEXT = "text"
CASES = ("perfect", "content_only", "photograph", "style_only", "swapped")
# What must have the greater value, by what a metric measures; a photograph is in no style and has no sentence.
CHECKS: dict[str, tuple[tuple[str, str], ...]] = {
    "content": (
        ("perfect", "style_only"), ("perfect", "swapped"), ("content_only", "style_only"), ("content_only", "swapped"),
        ("photograph", "style_only"),
    ),
    "style": (
        ("perfect", "content_only"), ("perfect", "swapped"), ("style_only", "content_only"), ("style_only", "swapped"),
        ("perfect", "photograph"),
    ),
    TEXT: (
        ("perfect", "content_only"), ("perfect", "style_only"), ("content_only", "swapped"), ("style_only", "swapped"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """What is drawn: subjects x styles, and photographs.

    content, style: true distances [subjects, subjects] and [styles, styles].
    classes, families: of each, as codes.
    """

    subjects: tuple[Concept, ...]
    styles: tuple[Concept, ...]
    content: np.ndarray
    style: np.ndarray
    classes: np.ndarray
    families: np.ndarray

    @classmethod
    def of(cls, subjects: Sequence[Concept], styles: Sequence[Concept]) -> World:
        from lorabench.data import microworld as mw

        return cls(
            subjects=tuple(subjects),
            styles=tuple(styles),
            content=np.array([[mw.content_distance(a.factors, b.factors) for b in subjects] for a in subjects]),
            style=np.array([[mw.style_distance(a.factors, b.factors) for b in styles] for a in styles]),
            classes=np.unique([subject.factors.cls for subject in subjects], return_inverse=True)[1],
            families=np.unique([style.factors.family for style in styles], return_inverse=True)[1],
        )

    @property
    def text(self) -> np.ndarray:
        """True distance of each sentence to each drawing, [classes x families, subjects, styles]."""
        classes, families = (np.unique(codes)[:, None] != codes for codes in (self.classes, self.families))
        return (classes[:, None, :, None] / 2 + families[None, :, None, :] / 2).reshape(-1, *self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        return len(self.subjects), len(self.styles)

    def anchors(self, measures: str) -> np.ndarray:
        """Which anchor each pair has, [subjects, styles]."""
        subjects, styles = np.indices(self.grid)
        sentences = self.classes[:, None] * (self.families.max() + 1) + self.families
        return {"content": subjects, "style": styles, TEXT: sentences}[measures]


@dataclass(frozen=True)
class Metric:
    """A metric's values on the world.

    measures: "content", "style" or "text".
    drawings: of each anchor on each drawing, [anchors, subjects, styles]; anchors are the subjects, the styles, or the
        sentences, classes first ([classes x families]).
    photographs: of each anchor on those of each subject, [anchors, subjects, photographs]; none of a sentence.
    """

    name: str
    backbone: str
    measures: str
    drawings: np.ndarray
    photographs: np.ndarray | None = None


def run(cfg: DictConfig, folder: Path) -> str:
    """Write calibration.csv, calibration.md and calibration.png, and print the tables."""
    from lorabench.engine.devices import device_name
    from lorabench.engine.workers import use_threads
    from lorabench.report.calibration import draw_calibration, write_calibration
    from lorabench.scoring.files import scorer_set
    from lorabench.tasks.jobs import load_scorer

    if not isinstance(spec := OmegaConf.to_object(cfg.dataset), MicroworldSpec):
        raise UserError("calibration needs the truth, which only the microworld has; use dataset=microworld")
    use_threads(cfg.trainer.threads)
    world, pairs = world_of(spec, Prompts(**cfg.prompts))
    typed: object = OmegaConf.to_object(cfg.scorers)
    device = device_name(cfg.trainer.accelerator)
    with claim_here(cfg.trainer.accelerator):
        files = scorer_set(typed).scorers  # pyright: ignore[reportArgumentType]
        measured = [*measure(world, pairs, [load_scorer(each, device) for each in files]), *ideals(world)]
    found = pd.concat([calibrate(metric, world, cfg.task.holds) for metric in measured], ignore_index=True)
    found.to_csv(folder / "calibration.csv", index=False, float_format="%.6g")
    text = write_calibration(found, world.grid, len(world.subjects[0].images), cfg.task.holds)
    (folder / "calibration.md").write_text(text)
    draw_calibration(found, folder / "calibration.png")
    print(text)
    return "calibration.png"


def world_of(spec: MicroworldSpec, prompts: Prompts) -> tuple[World, list[Pair]]:
    """The dataset's subjects and styles, and its pairs, subjects first; UserError where they are too few or several."""
    from lorabench.data.catalogue import load_pairs

    pairs = load_pairs(spec, prompts)
    if not all(pair.is_single for pair in pairs):
        raise UserError("calibration needs one subject and one style a pair; leave dataset.contents and + out")
    subjects, styles = (list({pair.of(role)[0].name: pair.of(role)[0] for pair in pairs}.values()) for role in ROLES)
    for key, found in (("subjects", subjects), ("styles", styles)):
        if len(found) < LEAST:
            raise UserError(f"dataset.{key} has {len(found)}, too few to rank; name {LEAST} or more, of several kinds")
    return World.of(subjects, styles), pairs


def measure(world: World, pairs: Sequence[Pair], scorers: Sequence[Scorer]) -> Iterator[Metric]:
    """Yield every metric of every scorer."""
    from lorabench.data.microworld_pairs import oracle
    from lorabench.scoring.clip import Clip
    from lorabench.scoring.embeddings import TEXT as TEXTS
    from lorabench.scoring.embeddings import embed_images, embed_texts
    from lorabench.scoring.preprocess import to_uint8

    drawings = [to_uint8(oracle(pair, 0)) for pair in pairs]
    photographs = [[to_uint8(image.load()) for image in subject.images] for subject in world.subjects]
    for scorer in scorers:
        drawn = scorer.embed(drawings)
        photographed = scorer.embed([image for own in photographs for image in own])
        for role in scorer.roles:
            anchors = world.subjects if role == "content" else world.styles
            references = [embed_images(anchor.references, [scorer], 1)[0].rows[role] for anchor in anchors]
            # the mean cosine with unit rows is the product with their mean
            means = [rows.mean(dim=0) for rows in references]
            on = {
                name: np.stack([(rows[role] @ mean).numpy() for mean in means])
                for name, rows in (("drawings", drawn), ("photographs", photographed))
            }
            yield Metric(
                f"{scorer.metric}/{role}", scorer.name, role, on["drawings"].reshape(-1, *world.grid),
                on["photographs"].reshape(len(anchors), len(world.subjects), -1),
            )  # fmt: skip
        if isinstance(scorer, Clip):
            texts = dict(sorted(zip(world.anchors(TEXT).ravel().tolist(), (pair.text for pair in pairs), strict=True)))
            rows = embed_texts(list(texts.values()), scorer).rows[TEXTS]
            values = np.stack([(drawn["content"] @ row).numpy() for row in rows])
            yield Metric(scorer.text_metric, scorer.name, TEXT, values.reshape(-1, *world.grid))


def ideals(world: World) -> list[Metric]:
    """What a metric that is the truth would give: the ceiling of every figure."""
    subjects, styles = world.grid
    content = np.broadcast_to(-world.content[:, :, None], (subjects, subjects, styles))
    style = np.broadcast_to(-world.style[:, None, :], (styles, subjects, styles))
    return [
        Metric("truth/content", "the factors", "content", content, -world.content[:, :, None]),
        Metric("truth/style", "the factors", "style", style, np.full((styles, subjects, 1), -1.0)),  # in no style
        Metric("truth/text", "the factors", TEXT, -world.text),
    ]


def calibrate(metric: Metric, world: World, holds: float) -> pd.DataFrame:
    """All figures of one metric, a row each.

    Columns: metric, backbone, measures, figure (spearman, kendall, variance, value, check), of (what it is of: "all",
    "same kind"; a source of variance; a case; "perfect > swapped"), kind ("other", "same": of the others in a case),
    value, low, high, anchors, passes (of checks).
    """
    lines = [*correlations(metric, world), *leakage(metric), *answers(metric, world)]
    found = pd.DataFrame(
        [{"figure": figure, "of": of, "kind": kind, **summary(each)} for figure, of, kind, each in lines]
    )
    is_check = found["figure"] == "check"
    found["passes"] = (found["value"] >= holds).astype(object).where(is_check & found["value"].notna(), None)
    return found.assign(metric=metric.name, backbone=metric.backbone, measures=metric.measures)


def summary(by_anchor: np.ndarray) -> dict[str, float | int]:
    """Mean over the anchors that have a figure, with the interval of a bootstrap over them."""
    known = by_anchor[~np.isnan(by_anchor)]
    at = stats.interval(known)
    return {"value": at.mean, "low": at.low, "high": at.high, "anchors": len(known)}


Lines = Iterator[tuple[str, str, str, np.ndarray]]  # figure, of, kind, a value an anchor


def correlations(metric: Metric, world: World) -> Lines:
    """Spearman's and Kendall's (tau-b) of value and closeness over drawings; NaN where either is constant."""
    if metric.measures == "content":
        distances = np.broadcast_to(world.content[:, :, None], metric.drawings.shape)
        same = np.broadcast_to((world.classes[:, None] == world.classes)[:, :, None], metric.drawings.shape)
    elif metric.measures == "style":
        distances = np.broadcast_to(world.style[:, None, :], metric.drawings.shape)
        same = np.broadcast_to((world.families[:, None] == world.families)[:, None, :], metric.drawings.shape)
    else:
        distances, same = world.text, None
    for name, correlate in (("spearman", spearmanr), ("kendall", kendalltau)):
        for of, chosen in (("all", np.ones(metric.drawings.shape, bool)), ("same kind", same)):
            if chosen is not None:
                found = [
                    correlation(correlate, values[use], -far[use])
                    for values, far, use in zip(metric.drawings, distances, chosen, strict=True)
                ]
                yield name, of, "", np.array(found)


def correlation(correlate, values: np.ndarray, closeness: np.ndarray) -> float:
    if np.ptp(values) == 0 or np.ptp(closeness) == 0:
        return np.nan
    return float(correlate(values, closeness).statistic)


def leakage(metric: Metric) -> Lines:
    """Shares of an anchor's variance over the grid: content, style, and the rest; NaN of an anchor that is constant."""
    values = metric.drawings
    centred = values - values.mean(axis=(1, 2), keepdims=True)
    total = (centred**2).mean(axis=(1, 2))
    total = np.where(total > 1e-20, total, np.nan)
    content = (centred.mean(axis=2) ** 2).mean(axis=1) / total
    style = (centred.mean(axis=1) ** 2).mean(axis=1) / total
    yield "variance", "content", "", content
    yield "variance", "style", "", style
    yield "variance", "rest", "", 1 - content - style


def answers(metric: Metric, world: World) -> Lines:
    """Mean value of each case, and the share of cases in which each check holds, of the pairs of an anchor."""
    anchors = world.anchors(metric.measures)
    for kind in ("other", "same"):
        if metric.measures == TEXT and kind == "same":
            continue  # a sentence does not tell them apart
        lines: dict[tuple[str, str], np.ndarray] = {}
        by_pair = {pair: cases(metric, world, int(anchor), pair, kind) for pair, anchor in np.ndenumerate(anchors)}
        for case in CASES:
            lines["value", case] = np.array(
                [own[case].mean() if own[case].size else np.nan for own in by_pair.values()]
            )
        for better, worse in CHECKS[metric.measures]:
            if kind == "same" and {better, worse} == {"perfect", "photograph"}:
                continue  # neither shows another
            shares = [exceeds(own[better], own[worse]) for own in by_pair.values()]
            lines["check", f"{better} > {worse}"] = np.array(shares)
        for (figure, of), found in lines.items():
            if not np.isnan(found).all():  # a photograph has no sentence, for example
                means = pd.Series(pd.Series(found).groupby(anchors.ravel()).mean())
                yield figure, of, kind, means.to_numpy()


def cases(metric: Metric, world: World, anchor: int, pair: tuple[int, ...], kind: str) -> dict[str, np.ndarray]:
    """Values of each case of a pair (subject, style); others are of another class and family, or of the same."""
    subject, style = pair
    values = metric.drawings[anchor]
    alike = world.classes == world.classes[subject], world.families == world.families[style]
    if kind == "same":
        subjects, styles = (np.setdiff1d(np.flatnonzero(each), own) for each, own in zip(alike, pair, strict=True))
    else:
        subjects, styles = (np.flatnonzero(~each) for each in alike)
    return {
        "perfect": values[subject, [style]],
        "content_only": values[subject, styles],
        "photograph": metric.photographs[anchor, subject] if metric.photographs is not None else np.empty(0),
        "style_only": values[subjects, style],
        "swapped": values[np.ix_(subjects, styles)].ravel(),
    }


def exceeds(better: np.ndarray, worse: np.ndarray) -> float:
    """Share of the couples in which the first is greater; equal ones count a half. NaN where there are none.

    >>> exceeds(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not better.size or not worse.size:
        return np.nan
    ordered = np.sort(worse)
    below, up_to = (np.searchsorted(ordered, better, side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / worse.size)
