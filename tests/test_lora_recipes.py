"""Every recipe of conf/lora composes, trains, and has the values of its paper's sources."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from commands import Commands
from conftest import CPU
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image

from lorabench.config.schemas import LoRASpec
from lorabench.engine.artifact import waves
from lorabench.engine.make import make
from lorabench.lora.adapter import LoRA
from lorabench.personalization.dreambooth import personalize
from lorabench.personalization.training import Environment
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.plan import Plan

CONF = Path(__file__).parents[1] / "conf"
OF_FLUX = {"lastben"}  # names blocks of FLUX.1; tests/test_transformer_layers.py checks it
RECIPES = sorted({path.stem for path in (CONF / "lora").glob("*.yaml")} - OF_FLUX)
PAPERS = {  # rank, blocks, rate, steps, images an update
    "ziplora": (64, 0, 5e-5, 1000, 1),
    "duolora": (64, 0, 5e-5, 1000, 1),
    "klora": (8, 0, 5e-5, 1000, 1),
    "blora": (64, 2, 5e-5, 1000, 1),
    "craft": (64, 0, 1e-5, 1000, 1),
    "pair": (64, 0, 1e-5, 750, 1),
    "dreambooth": (4, 0, 1e-4, 500, 4),
    "unziplora": (64, 0, 5e-5, 600, 1),
    "inspiration_tree": (64, 0, 5e-5, 1000, 8),
}


pytestmark = pytest.mark.usefixtures("hydra")


def recipe(name: str, *overrides: str) -> LoRASpec:
    found: Any = OmegaConf.to_object(compose("config", [f"lora={name}", *overrides]).lora)
    return found


def test_there_is_recipe_of_every_paper_asked_for() -> None:
    assert set(RECIPES) == {"default", *PAPERS}


@pytest.mark.parametrize("name", PAPERS)
def test_numbers_of_papers(name: str) -> None:
    spec = recipe(name)
    assert (spec.rank, len(spec.blocks), spec.lr, spec.steps, spec.batch * spec.accumulate) == PAPERS[name]
    assert (spec.alpha, spec.schedule, spec.warmup, spec.text_encoders) == (spec.rank, "constant", 0, False)
    assert recipe(name, "lora.rank=3").alpha == 3


@pytest.mark.parametrize("name", RECIPES)
def test_trains(name: str, model, pair) -> None:
    spec = recipe(name, "lora.rank=2", "lora.steps=2", "lora.batch=1")
    lora = personalize(model, pair.contents[0], spec, Environment(0, CPU))
    assert all(factors.up.abs().sum() > 0 for factors in lora.values())
    layers = model.layers.trained()
    assert set(lora) == {layer for layer in layers if not spec.blocks or layer.startswith(tuple(spec.blocks))}


def test_micro_recipe_asks_for_nothing_new() -> None:
    """Its results are in the documentation, so later features are switched off."""
    spec = recipe("default")
    assert (spec.blocks, spec.text_encoders, spec.accumulate, spec.optimizer) == ([], False, 1, "adamw")
    assert (spec.schedule, spec.min_snr, spec.prior_weight) == ("constant", None, 0)
    assert (spec.flips, spec.crops, spec.sample_every) == (False, 0, 0)
    assert {field.name for field in fields(LoRASpec)} == set(compose("config").lora)


def test_run_with_class_images_and_samples(tmp_path: Path, tiny: list[str]) -> None:
    """Two subjects of a class share their class images, and files for resuming a training are removed."""
    plan = planned(
        *tiny, f"output={tmp_path}", "lora=ziplora", "lora.rank=2", "lora.steps=2", "lora.prior_weight=1",
        "lora.prior_images=3", "lora.sample_every=1", "lora.crops=1", "lora.flips=true", "lora.text_encoders=true",
        "dataset.subjects=[mug_1,mug_2]", "dataset.styles=[ink_1]", "trainer.checkpoint_every=1", "trainer.workers=0",
    )  # fmt: skip
    items = plan.artifacts("personalize")
    assert [[each.stage for each in group] for group in waves(items)] == [["class_images"] * 2, ["personalize"] * 3]
    assert [each.steps for group in waves(items) for each in group] == [3, 3, 2, 2, 2]
    make(plan.store, plan.trainer, items)
    drawn = [sorted(folder.glob("*.png")) for folder in (plan.store.root / "class_images").iterdir()]
    assert [len(images) for images in drawn] == [3, 3]
    assert Image.open(drawn[0][0]).size == (64, 64)
    made = [plan.path(item) for item in items]
    assert all(LoRA.load(folder / "lora.safetensors").text for folder in made)
    assert [sorted(i.name for i in folder.glob("samples/*")) for folder in made] == [["000001.png", "000002.png"]] * 3
    assert not list((plan.store.root / ".partial").iterdir())


def test_what_lora_is_found_by(tmp_path: Path, tiny: list[str]) -> None:
    """The key does not depend on the frequency of checkpoints; it depends on class images, if there are any."""

    def keys(*overrides: str) -> list[str]:
        return [item.key for item in planned(*tiny, f"output={tmp_path}", *overrides).artifacts("personalize")]

    assert keys() == keys("trainer.checkpoint_every=7") == keys("generate.steps=7")
    prior = keys("lora.prior_weight=1")
    assert len({*keys(), *prior, *keys("lora.prior_weight=1", "generate.steps=7"), *keys("lora.flips=true")}) == 16


def planned(*overrides: str) -> Plan:
    cfg = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return plan_of(cfg)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora=ziplra"], "did you mean ziplora?"),
        (["lora.optimizer=adam"], "lora.optimizer=adam is unknown, did you mean adamw?"),
        (["lora.schedule=cosin"], "lora.schedule=cosin is unknown, did you mean cosine?"),
        (["lora.accumulate=0"], "lora.accumulate=0 must be at least 1"),
        (["lora.min_snr=0"], "lora.min_snr=0.0 must be greater than 0"),
        (["lora.prior_weight=-1"], "lora.prior_weight=-1.0 must be at least 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistake_is_one_line(
    commands: Commands, tmp_path: Path, tiny: list[str], overrides: list[str], words: str
) -> None:
    result = commands.run(*tiny, *overrides, f"output={tmp_path}")
    assert result.returncode == 2 and words in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not list(tmp_path.glob("store/personalize/*"))
