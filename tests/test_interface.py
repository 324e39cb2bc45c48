"""The model interface: refusals, the prompt cache, and independence of all other code from a model family."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_lora
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

import lorabench
from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.models import prompt_cache
from lorabench.models.conditioning import Conditioning
from lorabench.models.files import model_folder
from lorabench.models.load import load
from lorabench.models.schedulers import DETERMINISTIC, STOCHASTIC
from lorabench.sampling.parts import StepScales
from lorabench.sampling.sampler import sample_latents

ROOT = Path(lorabench.__file__).parent
SDXL_WORDS = re.compile(
    r"(?<![A-Za-z])unet|unet(?![A-Za-z])|alphas_bar|text_encoder_2|time_ids|init_noise_sigma|down_blocks|up_blocks|mid_block"
)


def test_words_of_sdxl_occur_in_models_and_lora_files_only() -> None:
    known = [ROOT / "models", ROOT / "lora" / "files"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(ROOT.rglob("*.py"))
        if not any(path.is_relative_to(folder) for folder in known)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if SDXL_WORDS.search(line)
    ]
    assert not found


def scheduler_folder(folder: Path, target: Path, name: str, **settings: Any) -> Path:
    """Return a copy of a model folder with another scheduler."""
    shutil.copytree(folder, target)
    index = json.loads((target / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
    file = target / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name, **settings}))
    return target


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_schedulers_are_refused_with_deterministic_one(folder: Path, tmp_path: Path, name: str) -> None:
    target = scheduler_folder(folder, tmp_path / "model", name)
    with pytest.raises(UserError, match=f"samples with {name}, which adds random noise .*; use {STOCHASTIC[name]} "):
        model_folder(target)
    assert STOCHASTIC[name] in DETERMINISTIC


def test_stochastic_settings_and_unknown_schedulers_are_refused(folder: Path, tmp_path: Path) -> None:
    name = "DPMSolverMultistepScheduler"
    target = scheduler_folder(folder, tmp_path / "sde", name, algorithm_type="sde-dpmsolver++")
    with pytest.raises(UserError, match=r"algorithm_type=sde-dpmsolver\+\+ adds random noise .*; use dpmsolver\+\+ "):
        model_folder(target)
    model_folder(scheduler_folder(folder, tmp_path / "ode", name, algorithm_type="dpmsolver++"))
    with pytest.raises(UserError, match="samples with MyScheduler, which is not known to be deterministic; use Euler"):
        model_folder(scheduler_folder(folder, tmp_path / "mine", "MyScheduler"))


def test_stochastic_scheduler_that_was_set_afterwards_is_refused(model) -> None:
    model.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(model.pipeline.scheduler.config)
    with pytest.raises(UserError, match="use EulerDiscreteScheduler"):
        sample_latents(model, ["a mug"], [0], 2, 1.0)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_schedulers_draw_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    model = load(model_folder(scheduler_folder(folder, tmp_path / "model", name)))
    torch.manual_seed(0)
    first = sample_latents(model, ["a mug"], [0], 4, 1.0)
    torch.manual_seed(1)
    assert torch.equal(sample_latents(model, ["a mug"], [0], 4, 1.0), first) and first.isfinite().all()


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "PNDMScheduler", "KDPM2DiscreteScheduler"])
def test_rule_keeps_its_steps_if_scheduler_calls_model_more_often(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = load(model_folder(scheduler_folder(folder, tmp_path / "model", name)))
    lora = random_lora(model, 2, "content")
    assert len(model.sampler(4).timesteps) > 4
    asked: list[int] = []
    at = StepScales.at
    monkeypatch.setattr(StepScales, "at", lambda self, step, rows=None: asked.append(step) or at(self, step, rows))
    with model.attach([lora]) as adapters:
        scales = StepScales(list(adapters.layers), torch.ones(4, len(adapters.layers), 1), {})
        sample_latents(model, ["a mug"], [0], 4, 1.0, adapters, scales)
    assert asked == sorted(asked) and set(asked) == {0, 1, 2, 3}


def test_prompt_cache_is_bounded(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "PROMPTS_KEPT", 3)
    encoded: list[str] = []
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda prompts: encoded.extend(prompts) or encode(prompts))
    prompts = [f"a mug {number}" for number in range(5)]
    rows = model.encode_prompts([*prompts, prompts[0]])
    assert encoded == prompts and len(rows) == 6 and len(model._prompts) == 3
    assert all(torch.equal(each[0], each[5]) for each in rows.tensors)
    model.encode_prompts([prompts[4], "a boat", prompts[4]])  # the least recent leaves
    assert encoded == [*prompts, "a boat"] and set(model._prompts._kept) == {prompts[3], prompts[4], "a boat"}


def test_conditioning_rows_are_taken_and_joined(model) -> None:
    mug, boat = model.encode_prompts(["a mug"]), model.encode_prompts(["a boat"])
    both = Conditioning.join([mug, boat])
    swapped = both.take([1, 0])
    assert len(both) == 2
    assert all(
        torch.equal(a[0], b[1]) and torch.equal(a[1], b[0]) for a, b in zip(both.tensors, swapped.tensors, strict=True)
    )


def test_text_adapters_apply_in_their_block_and_with_their_scales(model, loras) -> None:
    name, layer = next(iter(model.layers.trained_text().items()))
    spoken = Adapter(loras[0], {name: Factors(torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2))})
    plain = model.encode_prompts(["a mug"]).tensors[0]
    adapted = model.encode_prompts(["a mug"], [spoken, loras[1]]).tensors[0]
    assert not torch.equal(adapted, plain) and torch.equal(model.encode_prompts(["a mug"]).tensors[0], plain)
    for scale, expected in ((0.0, plain), (1.0, adapted)):
        with model.attach_text([spoken], {name: [scale]}):
            torch.testing.assert_close(model.encode_prompts(["a mug"]).tensors[0], expected)


def test_noise_is_noise_that_was_added(model) -> None:
    t, x0 = torch.tensor([20, 700]), torch.randn(2, 12, 4, 4)
    eps = torch.randn_like(x0)
    for predicts in ("epsilon", "v_prediction"):
        model.process.predicts = predicts
        xt, target = model.process.add_noise(x0, eps, t), model.process.target(x0, eps, t)
        torch.testing.assert_close(model.process.noise(xt, t, target), eps, rtol=1e-4, atol=1e-4)
    assert model.process.noisiest == 999
    with pytest.raises(UserError, match="law logit_normal does not exist for a DDPM model; use uniform"):
        model.process.timesteps(1, torch.Generator(), "logit_normal")


def prediction(model, adapters, prompt: str = "a mug", own=None) -> torch.Tensor:
    xt = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with model.attach(adapters), torch.no_grad():
        rows = None if own is None else [model.encode_prompts([each] * 2) for each in own]
        return model.predict(xt, torch.tensor([20, 700]), model.encode_prompts([prompt] * 2), rows)


def test_backbone_is_change_of_base_weights(model, loras) -> None:
    before = {name: weight.clone() for name, weight in model.denoiser.state_dict().items()}
    few = Adapter(dict(list(loras[1].items())[:5]))
    with model.changed(few):
        found = prediction(model, [loras[0]])
    torch.testing.assert_close(found, prediction(model, [loras[0], few]))
    assert not torch.allclose(found, prediction(model, [loras[0]]))
    after = model.denoiser.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_adapters_read_their_own_prompts_in_cross_attention(model, loras) -> None:
    """Adapt keys and values only, and compare with explicit products with the adapters' own prompts."""
    readers = [name for name in loras[0] if name.endswith(("attn2.to_k", "attn2.to_v"))]
    pair = [Adapter({name: lora[name] for name in readers}) for lora in loras]
    words = ["a boat", "a red tree"]
    same = prediction(model, pair, own=["a mug", "a mug"])
    torch.testing.assert_close(same, prediction(model, pair))
    states = [model.encode_prompts([word] * 2).tensors[0] for word in words]

    def add(module, inputs, output, name):
        updates = (state @ lora[name].down.T @ lora[name].up.T for state, lora in zip(states, pair, strict=True))
        return output + sum(updates)

    hooks = [model.denoiser.get_submodule(name).register_forward_hook(partial(add, name=name)) for name in readers]
    expected = prediction(model, [])
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(prediction(model, pair, own=words), expected)
    assert not torch.allclose(expected, same)


def test_own_prompts_survive_gradient_checkpointing(folder: Path, loras) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load(replace(model_folder(folder), checkpointing=checkpointing))
        own = [model.encode_prompts([word]) for word in ("a boat", "a red tree")]
        with model.attach(loras) as adapters:
            down = next(layer.down for name, layer in adapters.layers.items() if name.endswith("attn2.to_k"))
            down.requires_grad_()
            xt = torch.ones(1, *model.latent_shape)
            model.predict(xt, torch.tensor([500]), model.encode_prompts(["a mug"]), own).square().mean().backward()
            gradients.append(down.grad)
    torch.testing.assert_close(*gradients)


def test_guidance_scale_is_refused_without_embedding(model) -> None:
    assert model.guidance == "cfg"
    with pytest.raises(ValueError, match="no guidance embedding"):
        model.predict(torch.zeros(1, *model.latent_shape), torch.tensor([1]), model.encode_prompts([""]), guidance=3.5)
