"""task=params: count the parameters that every method learns, for every known model, without weights.

The counted masks are those that the method creates for the layers of `task.targets`, with one content LoRA and one
style LoRA on each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.config.components import component_name
from lorabench.data.concepts import ROLES
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.method import load
from lorabench.merging.presets import presets

COLUMNS = [
    "model",
    "rank",
    "denoiser_parameters",
    "targets",
    "layers",
    "lora_parameters",
    "method",
    "learned_parameters",
]


def run(cfg: DictConfig, folder: Path) -> str:
    """Write params.csv (one row per model and method) and params.md (one column per model), and print the latter."""
    counts = count(dict(cfg.task.ranks), cfg.task.targets)
    text = table(counts)
    counts.to_csv(folder / "params.csv", index=False)
    (folder / "params.md").write_text(text, encoding="utf-8")
    print(text)
    return "params.md"


def count(ranks: Mapping[str, int], targets: str = "attention") -> pd.DataFrame:
    """Return one row per model and method.

    Args:
        ranks: Rank of both LoRAs, by model.
        targets: Set of layers that the LoRAs adapt.
    """
    from lorabench.lora.layer import learned_params
    from lorabench.models.shapes import KNOWN, empty_model, layer_map

    rows = []
    learners = learning_methods()
    for model, rank in ranks.items():
        if rank < 1:
            raise UserError(f"task.ranks.{model}={rank} must be at least 1")
        choose("task.ranks", model, KNOWN)
        denoiser = sum(parameter.numel() for parameter in empty_model(model).denoiser.parameters())
        layers = layer_map(model).planned(rank, ROLES, targets=targets)
        loras = sum(sum(layer.ranks) * (layer.in_features + layer.out_features) for layer in layers.values())
        for label, merge in learners.items():
            learned = learned_params(merge.masks(layers, seed=0))
            rows.append((model, rank, denoiser, targets, len(layers), loras, label, learned))
    return pd.DataFrame(rows, columns=COLUMNS)


def learning_methods() -> dict[str, LearnedMasks]:
    """Return the merges that learn masks, by preset. Those with a setting `mask_dim` appear once for each value.

    A merge in closed form has as many masks as the trained one that it replaces.
    """
    found: dict[str, LearnedMasks] = {}
    for name in presets():
        merge = load(name).merge
        if not isinstance(merge, LearnedMasks):
            continue
        if hasattr(merge, "mask_dim") and name == component_name(merge):
            for dim in ("in", "out"):
                found[f"{name} ({dim})"] = replace(merge, mask_dim=dim)
        else:
            found[name] = merge
    return found


def table(counts: pd.DataFrame) -> str:
    """Return Markdown with one column per model: its denoiser, its LoRAs, and one row per method."""
    models = counts.drop_duplicates("model").set_index("model")
    lines = [["", *models.index], ["---", *["---:"] * len(models)]]
    for label, column in (
        ("denoiser parameters", "denoiser_parameters"),
        ("set of layers", "targets"),
        ("adapted layers", "layers"),
        ("rank of both LoRAs", "rank"),
        ("parameters of both LoRAs", "lora_parameters"),
    ):
        lines.append([label, *(value if column == "targets" else f"{value:,}" for value in models[column])])
    learned = counts.pivot(index="method", columns="model", values="learned_parameters")
    for method in counts["method"].drop_duplicates():
        lines.append([f"learned by {method}", *(f"{learned.loc[method, model]:,}" for model in models.index)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
