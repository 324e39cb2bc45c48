"""Content against style as their strengths vary: a curve for each method instead of a point on it.

A merge can be moved along a trade-off by scaling one LoRA, so a table of one point each may only say where on it the
methods stand. Here each method's LoRAs of one role are scaled while drawing (`Row.strength`), with the other at 1, and
what is compared is how much content and style can be had together. Merges are shared, so only drawing costs.

Both axes are shares of what one LoRA alone gives, so that they can be read without knowing the metrics:

    content = (C - C of style_only) / (C of content_only - C of style_only)
    style   = (S - S of content_only) / (S of style_only - S of content_only)

The reference point (0, 0) is the floor: the content of `style_only`, the style of `content_only`. A hypervolume is the
area that a method's points dominate from there; 1 is that of a merge that gives as much content as the content LoRA
alone and as much style as the style LoRA alone. Its interval is a bootstrap over pairs on these axes, which stay those
of all pairs. The best of several noisy points is too good by chance, for all methods alike: all have as many points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

import moocore
import numpy as np
import pandas as pd
from omegaconf import DictConfig

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.data.pairs import ROLES, Role
from lorabench.engine.devices import device_name
from lorabench.engine.make import make
from lorabench.report import stats
from lorabench.scoring.description import read_config
from lorabench.scoring.files import ScorerSet
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_methods, check_scorers
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row, check_rows

ALONE: dict[Role, str] = {"content": "content_only", "style": "style_only"}  # the row that has one role's LoRA
METRICS = {"dino": "dino", "clip": "clip_i", "csd": "csd"}  # metric by kind of scorer

Strengths = tuple[float, float]  # scales of content and style


@dataclass(frozen=True)
class Axis:
    """A metric as a share of what the role's LoRA alone gives.  off, on: its mean without it and with it alone."""

    metric: str
    off: float
    on: float

    def share(self, values: pd.Series) -> pd.Series:
        return (values - self.off) / (self.on - self.off)


def run(cfg: DictConfig, folder: Path) -> str:
    """Write tradeoff.csv (points), hypervolume.csv, tradeoff.md and tradeoff.png, and print the table."""
    from lorabench.report.tradeoff import draw_tradeoff

    names, points = list(cfg.task.methods), fan(list(cfg.task.strengths))
    rows = rows_of(names, points)
    frames = [Row.of(name) for name in ALONE.values()]
    plan = plan_of(cfg, [*frames, *rows.values()])
    metrics: dict[Role, str] = {"content": cfg.task.content, "style": cfg.task.style}
    check_metrics(metrics, plan.scorers)
    device_name(plan.trainer.accelerator)  # is it there?
    check_methods(changed(plan, rows=[rows[name, (1.0, 1.0)] for name in names]))
    check_scorers(plan)
    make(plan.store, plan.trainer, plan.all_artifacts())

    alone = {role: {row.name: values(plan, row, metrics[role]) for row in frames} for role in ROLES}
    axes: dict[Role, Axis] = {role: axis_of(role, metrics[role], alone[role]) for role in ROLES}
    measured: Measured = {of: {role: values(plan, row, metrics[role]) for role in ROLES} for of, row in rows.items()}
    curves = curves_of(measured, axes)
    volumes = volumes_of(measured, axes, cfg.reference)
    curves.to_csv(folder / "tradeoff.csv", index=False, float_format="%.6g")
    volumes.to_csv(folder / "hypervolume.csv", index=False, float_format="%.6g")
    text = table(curves, volumes, axes, len(plan.pairs), plan.generation.images)
    (folder / "tradeoff.md").write_text(text)
    draw_tradeoff(curves, volumes, {role: axes[role].metric for role in ROLES}, folder / "tradeoff.png")
    print(text)
    return "tradeoff.png"


def fan(strengths: Sequence[float]) -> list[Strengths]:
    """From little style over (1, 1) to little content.

    >>> fan([0.5])
    [(1.0, 0.5), (1.0, 1.0), (0.5, 1.0)]
    """
    steps = sorted({float(value) for value in strengths} - {1.0})
    if not steps or steps[0] <= 0:
        raise UserError("task.strengths needs values greater than 0 other than 1; use task.strengths=[0.25,0.5,0.75]")
    return [*((1.0, step) for step in steps), (1.0, 1.0), *((step, 1.0) for step in reversed(steps))]


def rows_of(names: Sequence[str], points: Sequence[Strengths]) -> dict[tuple[str, Strengths], Row]:
    """A row a method and point; the point (1, 1) is the method's row of any other run."""
    check_rows("task.methods", names, "[direct,duolora]", floors="has no trade-off")
    rows = {}
    for name in names:
        row = Row.of(name)
        for point in points:
            strength: dict[Role, float] | None = dict(zip(ROLES, point, strict=True)) if point != (1.0, 1.0) else None
            at = " ".join(f"{value:g}" for value in point)
            rows[name, point] = changed(row, name=f"{name} {at}" if strength else name, strength=strength)
    return rows


def check_metrics(metrics: Mapping[Role, str], scorers: ScorerSet) -> None:
    """UserError unless the scorers give both metrics."""
    kinds = dict.fromkeys(METRICS[read_config(files.config)["kind"]] for files in scorers.scorers)
    for role in ROLES:
        choose(f"task.{role}", metrics[role], [f"{kind}/{role}" for kind in kinds])


def values(plan: Plan, row: Row, metric: str) -> pd.Series:
    """Value by pair; of several backbones that have the metric, the first one's."""
    scores = pd.concat(pd.read_parquet(plan.path(plan.score(row, pair)) / "scores.parquet") for pair in plan.pairs)
    scores = scores.loc[scores["metric"] == metric].assign(dataset=plan.dataset.name)
    return stats.pair_means(scores.loc[scores["backbone"] == scores["backbone"].iloc[0]])


def axis_of(role: Role, metric: str, alone: Mapping[str, pd.Series]) -> Axis:
    """alone: the role's metric by pair, of both rows that have one LoRA."""
    means = {name: float(found.mean()) for name, found in alone.items()}
    on = means.pop(ALONE[role])
    [off] = means.values()
    if on <= off:
        raise UserError(
            f"{metric} is no better with the {role} LoRA alone ({on:.3f}) than without it ({off:.3f}), so there is no "
            "trade-off to measure; use more lora.steps or other dataset.subjects"
        )
    return Axis(metric, off, on)


Measured = Mapping[tuple[str, Strengths], Mapping[Role, pd.Series]]  # by role, a value a pair


def curves_of(measured: Measured, axes: Mapping[Role, Axis]) -> pd.DataFrame:
    """A row a method and point: strengths, both metrics, both shares with their intervals, and which are not dominated.

    front: by no other point of the method.  joint_front: by no point of any method.
    """
    lines = []
    for (name, point), by_role in measured.items():
        line: dict[str, str | float] = {"method": name, "content_strength": point[0], "style_strength": point[1]}
        for role in ROLES:
            at = stats.interval(axes[role].share(by_role[role]))
            line |= {axes[role].metric: float(by_role[role].mean())}
            line |= {role: at.mean, f"{role}_low": at.low, f"{role}_high": at.high}
        lines.append(line)
    curves = pd.DataFrame(lines)
    curves["front"] = False
    for _, own in curves.groupby("method"):
        curves.loc[own.index, "front"] = undominated(own)
    return curves.assign(joint_front=undominated(curves))


def undominated(curves: pd.DataFrame) -> np.ndarray:
    return np.asarray(moocore.is_nondominated(curves[list(ROLES)].to_numpy(), maximise=True))


def volumes_of(measured: Measured, axes: Mapping[Role, Axis], reference: str) -> pd.DataFrame:
    """A row a method: hypervolume, low, high, and, paired by resample, the difference to the reference method."""
    by_method = {name: shares(measured, name, axes) for name, _ in measured}
    whole = {name: hypervolume(points.mean(axis=1)) for name, points in by_method.items()}
    drawn = {name: resampled(points) for name, points in by_method.items()}
    lines = []
    for name, points in by_method.items():
        low, high = map(float, stats.ends(drawn[name], points.shape[1]))
        line: dict[str, str | float | bool] = {"method": name, "hypervolume": whole[name], "low": low, "high": high}
        if reference in whole and name != reference:
            least, most = map(float, stats.ends(drawn[name] - drawn[reference], points.shape[1]))
            line |= {"reference": reference, "difference": whole[name] - whole[reference]}
            line |= {"difference_low": least, "difference_high": most, "separated": bool(least > 0 or most < 0)}
        lines.append(line)
    return pd.DataFrame(lines)


def shares(measured: Measured, name: str, axes: Mapping[Role, Axis]) -> np.ndarray:
    """Content and style of a method's points by pair, [points, pairs, 2]."""
    own = [by_role for (method, _), by_role in measured.items() if method == name]
    return np.array([np.stack([axes[role].share(by_role[role]) for role in ROLES], axis=-1) for by_role in own])


def hypervolume(points: np.ndarray) -> float:
    """Area that points [n, 2] dominate from (0, 0); those below it on an axis add nothing."""
    return float(moocore.hypervolume(points, ref=[0.0, 0.0], maximise=True))


def resampled(points: np.ndarray) -> np.ndarray:
    """The hypervolume of each bootstrap sample of the pairs, of points [points, pairs, 2]."""
    pairs = points.shape[1]
    means = np.einsum("kpa,pr->rka", points, stats.counts(pairs)) / pairs
    return np.array([hypervolume(each) for each in np.ascontiguousarray(means)])


def table(curves: pd.DataFrame, volumes: pd.DataFrame, axes: Mapping[Role, Axis], pairs: int, images: int) -> str:
    """The hypervolumes for people, and how to read them."""
    rows = volumes.to_dict("records")
    compared = len(rows) > 1 and "difference" in volumes
    reference = next(name for name in volumes["reference"] if not pd.isna(name)) if compared else ""
    heads = ["method", "hypervolume", *([f"difference to {reference}"] if compared else [])]
    heads += ["content, style at (1, 1)", "own front", "front of all"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for row in rows:
        own = curves.loc[curves["method"] == row["method"]]
        whole = own.query("content_strength == 1 and style_strength == 1").iloc[0]
        cells = [row["method"], f"{row['hypervolume']:.3f} {span(row['low'], row['high'])}"]
        if compared:
            known = not pd.isna(row["difference"])
            mark = "" if not known or row["separated"] else " ~"
            value = f"{row['difference']:+.3f} {span(row['difference_low'], row['difference_high'])}{mark}"
            cells.append(value if known else "")
        cells.append(f"{whole['content']:.2f}, {whole['style']:.2f}")
        cells += [f"{own[front].sum()} of {len(own)}" for front in ("front", "joint_front")]
        lines.append(f"| {' | '.join(cells)} |")
    content, style = (axes[role] for role in ROLES)
    mark = (
        f"; ~ not separated from {reference}: the interval of the paired difference holds zero. Each method is "
        "compared alone, without a correction for their number"
    )
    notes = [
        f"Content: {content.metric} from {content.off:.3f} (0, style LoRA alone) to {content.on:.3f} (1, content LoRA "
        f"alone); style: {style.metric} from {style.off:.3f} (0, content LoRA alone) to {style.on:.3f} (1, style LoRA "
        "alone). Hypervolume: the area that a method's points dominate from (0, 0); 1 is both as with each LoRA alone.",
        f"95 % intervals of a bootstrap over {pairs} pairs of {images} images{mark if compared else ''}.",
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"


def span(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"
