"""How many numbers every method learns for every model of the family, counted without weights.

What is counted are the masks that the method itself makes for the model's attention layers, one content LoRA and one
style LoRA on each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from lorabench.base import CONF, UserError
from lorabench.config.choices import choose
from lorabench.data.pairs import ROLES
from lorabench.merging.method import Method, load

COLUMNS = ["model", "rank", "denoiser_parameters", "layers", "lora_parameters", "method", "learned_parameters"]


def run(cfg: DictConfig, folder: Path) -> None:
    """Write params.csv (a row a model and method) and params.md (a column a model), and print the latter."""
    counts = count(dict(cfg.task.ranks))
    text = table(counts)
    folder.mkdir(parents=True, exist_ok=True)
    counts.to_csv(folder / "params.csv", index=False)
    (folder / "params.md").write_text(text)
    print(text)
    print(folder / "params.md")


def count(ranks: Mapping[str, int]) -> pd.DataFrame:
    """One row a model and method.

    ranks: of both LoRAs, by model.
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
        layers = layer_map(model).planned(rank, ROLES)
        loras = sum(sum(layer.ranks) * (layer.in_features + layer.out_features) for layer in layers.values())
        for label, method in learners.items():
            masks = method.masks(layers, seed=0)
            if masks is not None:
                rows.append((model, rank, denoiser, len(layers), loras, label, learned_params(masks)))
    return pd.DataFrame(rows, columns=COLUMNS)


def learning_methods() -> dict[str, Method]:
    """The methods of conf/method that learn; of the published ones (no presets) a row for each `mask_dim`.

    A method in closed form has as many masks as the trained one that it stands for.
    """
    found: dict[str, Method] = {}
    for path in sorted((CONF / "method").glob("*.yaml")):
        method = load(path.stem)
        if method.fit is None:
            continue
        if hasattr(method, "mask_dim") and path.stem == method.name:
            found |= {f"{path.stem} ({dim})": load(path.stem, mask_dim=dim) for dim in ("in", "out")}
        else:
            found[path.stem] = method
    return found


def table(counts: pd.DataFrame) -> str:
    """Markdown, a column a model: its denoiser, its LoRAs, and a row a method."""
    models = counts.drop_duplicates("model").set_index("model")
    lines = [["", *models.index], ["---", *["---:"] * len(models)]]
    for label, column in (
        ("denoiser parameters", "denoiser_parameters"),
        ("adapted layers", "layers"),
        ("rank of both LoRAs", "rank"),
        ("parameters of both LoRAs", "lora_parameters"),
    ):
        lines.append([label, *(f"{value:,}" for value in models[column])])
    learned = counts.pivot(index="method", columns="model", values="learned_parameters")
    for method in counts["method"].drop_duplicates():
        lines.append([f"learned by {method}", *(f"{learned.loc[method, model]:,}" for model in models.index)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
