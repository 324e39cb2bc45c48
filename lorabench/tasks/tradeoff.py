"""task=tradeoff: content against style for several scales of the LoRAs, as one curve per method.

Scaling one LoRA moves a merge along a trade-off of content and style, so a table with one point per method may only
show positions on a common curve. Here the LoRAs of one role are scaled during sampling (`Row.strength`) while the other
role stays at 1, and the curves are compared. The merges are shared, so that the cost is sampling only.

lorabench/tasks/tradeoff_curves.py defines the axes and the hypervolume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as changed
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.data.concepts import ROLES, Role
from lorabench.engine.make import make
from lorabench.report import averages
from lorabench.scoring.description import read_config
from lorabench.scoring.files import ScorerSet
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.checks import check_plan
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row, check_rows
from lorabench.tasks.tradeoff_curves import Axis, Measured, Strengths, curves_of, volumes_of

SINGLE: dict[Role, str] = {"content": "content_only", "style": "style_only"}  # row with the single LoRA of a role
METRICS = {"dino": "dino", "clip": "clip_i", "csd": "csd"}  # metric by kind of scorer


def run(cfg: DictConfig, folder: Path) -> str:
    """Write tradeoff.csv (points), hypervolume.csv, tradeoff.md and tradeoff.png, and print the table."""
    from lorabench.report.tradeoff import draw_tradeoff

    names, points = list(cfg.task.methods), fan(list(cfg.task.strengths))
    rows = rows_of(names, points)
    baselines = [Row.of(name) for name in SINGLE.values()]
    plan = plan_of(cfg, [*baselines, *rows.values()])
    metrics: dict[Role, str] = {"content": cfg.task.content, "style": cfg.task.style}
    check_metrics(metrics, plan.scorers)
    check_plan(changed(plan, rows=[rows[name, (1.0, 1.0)] for name in names]))
    make(plan.store, plan.trainer, plan.all_artifacts())

    single = {role: {row.name: values(plan, row, metrics[role]) for row in baselines} for role in ROLES}
    axes: dict[Role, Axis] = {role: axis_of(role, metrics[role], single[role]) for role in ROLES}
    measured: Measured = {of: {role: values(plan, row, metrics[role]) for role in ROLES} for of, row in rows.items()}
    curves = curves_of(measured, axes)
    volumes = volumes_of(measured, axes, cfg.reference)
    curves.to_csv(folder / "tradeoff.csv", index=False, float_format="%.6g")
    volumes.to_csv(folder / "hypervolume.csv", index=False, float_format="%.6g")
    text = table(curves, volumes, axes, len(plan.pairs), plan.generation.images)
    (folder / "tradeoff.md").write_text(text, encoding="utf-8")
    draw_tradeoff(curves, volumes, {role: axes[role].metric for role in ROLES}, folder / "tradeoff.png")
    print(text)
    return "tradeoff.png"


def fan(strengths: Sequence[float]) -> list[Strengths]:
    """Return the points (content scale, style scale), from the smallest style over (1, 1) to the smallest content.

    >>> fan([0.5])
    [(1.0, 0.5), (1.0, 1.0), (0.5, 1.0)]
    """
    steps = sorted({float(value) for value in strengths} - {1.0})
    if not steps or steps[0] <= 0:
        raise UserError("task.strengths needs values greater than 0 other than 1; use task.strengths=[0.25,0.5,0.75]")
    return [*((1.0, step) for step in steps), (1.0, 1.0), *((step, 1.0) for step in reversed(steps))]


def rows_of(names: Sequence[str], points: Sequence[Strengths]) -> dict[tuple[str, Strengths], Row]:
    """Return one row per method and point. The point (1, 1) is the method's row of any other run."""
    check_rows("task.methods", names, "[direct,duolora]", baselines="has no trade-off")
    rows = {}
    for name in names:
        row = Row.of(name)
        for point in points:
            strength: dict[Role, float] | None = dict(zip(ROLES, point, strict=True)) if point != (1.0, 1.0) else None
            at = " ".join(f"{value:g}" for value in point)
            rows[name, point] = changed(row, name=f"{name} {at}" if strength else name, strength=strength)
    return rows


def check_metrics(metrics: Mapping[Role, str], scorers: ScorerSet) -> None:
    """Check that the scorers have both metrics.

    Raises:
        UserError: If they have not.
    """
    kinds = dict.fromkeys(METRICS[read_config(files.config)["kind"]] for files in scorers.scorers)
    for role in ROLES:
        choose(f"task.{role}", metrics[role], [f"{kind}/{role}" for kind in kinds])


def values(plan: Plan, row: Row, metric: str) -> pd.Series:
    """Return the metric by pair, of the first backbone that has it."""
    scores = pd.concat(pd.read_parquet(plan.path(plan.score(row, pair)) / "scores.parquet") for pair in plan.pairs)
    scores = scores.loc[scores["metric"] == metric].assign(dataset=plan.dataset.name)
    return averages.pair_means(scores.loc[scores["backbone"] == scores["backbone"].iloc[0]])


def axis_of(role: Role, metric: str, single: Mapping[str, pd.Series]) -> Axis:
    """Return the axis of a role.

    Args:
        role: The role.
        metric: Name of its metric.
        single: The metric by pair for both rows with a single LoRA.

    Raises:
        UserError: If the role's LoRA does not increase the metric.
    """
    means = {name: float(found.mean()) for name, found in single.items()}
    on = means.pop(SINGLE[role])
    [off] = means.values()
    if on <= off:
        raise UserError(
            f"{metric} is not greater with the {role} LoRA ({on:.3f}) than without it ({off:.3f}), so there is no "
            "trade-off to measure; use more lora.steps or other dataset.subjects"
        )
    return Axis(metric, off, on)


def table(curves: pd.DataFrame, volumes: pd.DataFrame, axes: Mapping[Role, Axis], pairs: int, images: int) -> str:
    """Return Markdown with the hypervolumes and notes on how to read them.

    Args:
        curves: Points of all methods.
        volumes: Hypervolume of each method.
        axes: The axes by role.
        pairs: Number of pairs.
        images: Images per pair.
    """
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
        f"; ~ not separated from {reference}: the interval of the paired difference contains zero. There is no "
        "correction for the number of methods"
    )
    notes = [
        f"Content: {content.metric} from {content.off:.3f} (0, style LoRA only) to {content.on:.3f} (1, content LoRA "
        f"only); style: {style.metric} from {style.off:.3f} (0, content LoRA only) to {style.on:.3f} (1, style LoRA "
        "only). Hypervolume: the area that a method's points dominate from (0, 0); 1 for both as with single LoRAs.",
        f"95 % intervals of a bootstrap over {pairs} pairs with {images} images each{mark if compared else ''}.",
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"


def span(low: float, high: float) -> str:
    """Return an interval as text; empty if it is unknown."""
    return "" if pd.isna(low) else f"[{low:.3f}, {high:.3f}]"
