"""Every training on a tiny SD3, and those of plain LoRAs, of tokens and of bases on a tiny FLUX.1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU
from merges import trained
from test_golden import STYLISED, WORLD
from torch import Tensor
from transformers_tiny import tiny_transformer

from lorabench.base import UserError
from lorabench.config.schemas import GenerateSpec, LoRASpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts
from lorabench.merging import presets
from lorabench.merging.method import load as load_method
from lorabench.models.model import DiffusionModel
from lorabench.personalization.training import Environment
from lorabench.scoring.description import ScorerFiles
from lorabench.scoring.load import load_scorer

OPTIONS = [name for name in presets.options("training") if name != "given"]  # given: the user's files
OWN_LAW = {"inspiration_tree": "noisy"}
ON_FLUX = ("dreambooth", "joint", "para", "qr", "textual_inversion")
SETTINGS: dict[str, dict[str, Any]] = {  # presets that name blocks of SDXL get blocks of the transformer
    "blora": {"content_block": "transformer_blocks.0", "style_block": ["transformer_blocks.1", "transformer_blocks.2"]},
    "craft": {
        "layer_sets": {"content": ["transformer_blocks.0"], "style": ["transformer_blocks.1"]},
        "backbone": {"steps": 2, "batch": 1, "contents": 2, "styles": 2},
    },
    "inspiration_tree": {"siblings": 2, "kept": 1, "candidates": 1, "samples": 2},
    "unziplora": {"dedicated": "depth", "prompt_separation": False},
    "unziplora_released": {"dedicated": "depth", "prompt_separation": False},
}


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return tiny_transformer(request.param, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("model", "name"),
    [*(("sd3", name) for name in OPTIONS), *(("dev", name) for name in ON_FLUX)],
    indirect=["model"],
)
def test_training_follows_recipe(
    model: DiffusionModel, lora_spec: LoRASpec, scorers: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It draws the noise levels of the recipe, minimizes its loss, and trains the planned layers of its set."""
    laws, losses = set(), set()

    def timesteps(n: int, rng: torch.Generator, law: str = "uniform") -> Tensor:
        laws.add(law)
        return type(model.process).timesteps(model.process, n, rng, law)

    def of_loss(t: Tensor, loss: str) -> Tensor | None:
        losses.add(loss)
        return type(model.process).of_loss(model.process, t, loss)

    monkeypatch.setattr(model.process, "timesteps", timesteps)
    monkeypatch.setattr(model.process, "of_loss", of_loss)
    recipe = replace(lora_spec, timesteps="uniform" if name in OWN_LAW else "style", loss="x0", targets="all")
    option = load_method(f"direct+training.{name}", **SETTINGS.get(name, {})).training
    [pair] = load_pairs(STYLISED if option.images == "stylised" else WORLD, Prompts())
    env = Environment(
        0,
        CPU,
        generate=GenerateSpec(1, 2, 3.0, 8),
        scorer=lambda kind: load_scorer(ScorerFiles.of(scorers / kind), "cpu"),
    )
    jobs = {output.job.name: output.job for output in option.outputs(pair, recipe)}
    for job in [*jobs.values(), *filter(None, (job.backbone for job in jobs.values()))]:
        for adapter in trained(job, model, env).values():
            assert set(adapter) == (set(job.ranks(model.layers)) if option.has_factors else set())
            assert any(name.endswith("ff.net.2") for name in adapter) or adapter.tokens
    assert (laws, losses) == ({OWN_LAW.get(name, "style")}, {"x0"})


def test_law_of_method_is_not_replaced(pair: Pair, lora_spec: LoRASpec) -> None:
    option = load_method("direct+training.inspiration_tree").training
    with pytest.raises(UserError, match=r"lora\.timesteps=style is not a setting of .* use lora\.timesteps=uniform"):
        option.outputs(pair, replace(lora_spec, timesteps="style"))
