"""task=layer_probe: measure which layers carry content and which carry style, for any model.

DuoLoRA (arXiv 2504.13206) assigned SDXL's blocks to content and style by hand. Here the direct merge of a content LoRA
and a style LoRA generates images. Then one of the LoRAs is scaled down in one block (or in one transformer block), and
images are generated from the same noise. A layer's share of a role is the drop of the role's score, relative to the
drop when the role's LoRA is switched off in all layers:

    lost_content = (C - C_scaled) / (C - C_off),   C: dino/content,   off: the row `style_only`
    lost_style   = (S - S_scaled) / (S - S_off),   S: csd/style,      off: the row `content_only`

A module is assigned to the role with the larger share. The result is a prior for `method.prior=<file>`, so that DuoLoRA
can be used with other models than SDXL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.data.concepts import ROLES, Role
from lorabench.engine.make import make
from lorabench.models.files import ModelFiles
from lorabench.models.shapes import layer_map
from lorabench.report import averages, stats
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row

KINDS = ("block", "layer")
METRIC: dict[Role, str] = {"content": "dino/content", "style": "csd/style"}
OFF: dict[Role, str] = {"content": "style_only", "style": "content_only"}
WHOLE = "custom_weights"


def run(cfg: DictConfig, folder: Path) -> str:
    """Write layer_probe.csv, prior_block.yaml, prior_layer.yaml and layer_probe.png, and print the table."""
    from lorabench.report.probe import draw_probe

    if not cfg.task.by:
        raise UserError("task.by is empty; use task.by=[block,layer]")
    for kind in cfg.task.by:
        choose("task.by", kind, KINDS)
    plan = plan_of(cfg, [])
    modules = modules_of(plan.model, cfg.task.by)
    rows = [replace(Row.of(WHOLE), live=True), *(Row.of(name) for name in OFF.values())]
    for names in modules.values():
        for name in names:
            for role in ROLES:
                probed = Row.of(WHOLE, blocks={name: {role: cfg.task.scale}})
                rows.append(replace(probed, name=f"{role} {name}", live=True))
    plan = plan_of(cfg, rows)
    if not all(pair.is_single for pair in plan.pairs):
        raise UserError("a layer probe needs one subject and one style per pair; remove dataset.contents and +")
    make(plan.store, plan.trainer, plan.artifacts("score"))

    scores = {row.name: read_scores(plan, row) for row in plan.rows}
    found = pd.concat([measure(scores, kind, names) for kind, names in modules.items()], ignore_index=True)
    found.to_csv(folder / "layer_probe.csv", index=False, float_format="%.6g")
    for kind, rows_of in found.groupby("kind", sort=False):
        write_prior(folder / f"prior_{kind}.yaml", rows_of, plan)
    draw_probe(found, folder / "layer_probe.png")
    print(table(found))
    return "layer_probe.png"


def modules_of(model: ModelFiles, kinds: Sequence[str]) -> dict[str, list[str]]:
    """Return the paths of the modules by kind. The blocks of SD3 and FLUX.1 are of both kinds and are probed once."""
    found: dict[str, list[str]] = {}
    for kind in (each for each in KINDS if each in kinds):
        if (names := names_of(model, kind)) not in found.values():
            found[kind] = names
    return found


def names_of(model: ModelFiles, kind: str) -> list[str]:
    """Return the paths of the blocks or transformer blocks with attention, in the order of the forward pass."""
    layers = layer_map(model)
    return list(layers.blocks if kind == "block" else layers.transformer_blocks)


def measure(scores: Mapping[str, pd.DataFrame], kind: str, names: list[str]) -> pd.DataFrame:
    """Return one row per module with its share of each role, and the interval of a bootstrap over pairs.

    Args:
        scores: Rows of scores, by the name of the row that generated the images.
        kind: "block" or "layer" (a transformer block).
        names: Names of the modules.
    """
    lines = []
    for name in names:
        line: dict[str, str | float] = {"kind": kind, "module": name}
        shares = {role: lost(scores, role, f"{role} {name}") for role in ROLES}
        for role, share in shares.items():
            at = stats.over_pairs(share)
            line |= {role: at.mean, f"{role}_low": at.low, f"{role}_high": at.high}
        apart = stats.over_pairs(shares["content"] - shares["style"])
        line |= {"carries": "content" if apart.mean > 0 else "style", "separated": bool(apart.separated)}
        lines.append(line)
    return pd.DataFrame(lines)


def read_scores(plan: Plan, row: Row) -> pd.DataFrame:
    """Return the scores of a row for all pairs."""
    scores = [pd.read_parquet(plan.path(plan.score(row, pair)) / "scores.parquet") for pair in plan.pairs]
    return pd.concat(scores).assign(dataset=plan.dataset.name)


def lost(scores: Mapping[str, pd.DataFrame], role: Role, scaled: str) -> pd.Series:
    """Return the loss of the role's score by pair, divided by the mean loss without the role's LoRA.

    The divisor is a mean over pairs, because a LoRA that changes little in one pair has no reliable share there.

    Raises:
        UserError: If the role's LoRA does not increase the role's score.
    """
    whole, off, low = (
        averages.pair_means(rows.query(f"metric == {METRIC[role]!r}"))
        for rows in (scores[WHOLE], scores[OFF[role]], scores[scaled])
    )
    unit = float((whole - off).mean())
    if unit <= 0:
        raise UserError(
            f"{METRIC[role]} does not fall without the {role} LoRA (by {unit:.3f}), so the shares of its layers are "
            "undefined; use more lora.steps or other dataset.subjects"
        )
    return (whole - low) / unit


def write_prior(path: Path, rows: pd.DataFrame, plan: Plan) -> None:
    """Write a prior as YAML {content: [...], style: [...]}, with a comment on its origin."""
    blocks = {role: rows.loc[rows["carries"] == role, "module"].tolist() for role in ROLES}
    pairs = ", ".join(pair.name for pair in plan.pairs)
    origin = f"# measured on {plan.model_name} with {pairs}, {plan.generation.images} images each\n"
    close = rows.loc[~rows["separated"], "module"].tolist()
    note = f"# the larger share; not separated on these pairs: {', '.join(close)}\n" if close else ""
    path.write_text(origin + note + OmegaConf.to_yaml(OmegaConf.create(blocks)), encoding="utf-8")


def table(found: pd.DataFrame) -> str:
    """Return the shares as a Markdown table."""
    lines = ["| module | content lost | style lost | carries |", "|---|---:|---:|---|"]
    for row in found.to_dict("records"):
        shares = [f"{row[role]:.2f} [{row[f'{role}_low']:.2f}, {row[f'{role}_high']:.2f}]" for role in ROLES]
        lines.append(f"| {row['module']} | {' | '.join(shares)} | {row['carries']}{'' if row['separated'] else ' ~'} |")
    return "\n".join([*lines, "", "~ the two shares are not separated on these pairs.", ""])
