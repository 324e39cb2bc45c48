"""Negative prompts: the prompt of the unconditional prediction, in task=generate and in the benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Commands
from PIL import Image

from lorabench.config.schemas import GenerateSpec
from lorabench.lora.adapter import Adapter
from lorabench.models.sdxl.model import SDXL
from lorabench.sampling.rule import Branch
from lorabench.sampling.sampler import sample_latents

PROMPTS = ["a sks mug in szn style", "a boat"]
NEGATIVE = "blurry, dark"


@pytest.mark.parametrize("zeros", [False, True])
def test_negative_prompt_is_that_of_diffusers(folder: Path, zeros: bool) -> None:
    """With zeros for the empty prompt too, as SDXL is configured: a negative prompt is encoded."""
    model = SDXL.load(folder)
    pipeline: Any = model.pipeline
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS, negative_prompt=[NEGATIVE] * 2, num_inference_steps=3, guidance_scale=4.0,
        latents=model.initial_noise([3, 4]), output_type="latent",
    ).images  # fmt: skip
    ours = sample_latents(model, PROMPTS, [3, 4], 3, 4.0, negative=NEGATIVE)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, sample_latents(model, PROMPTS, [3, 4], 3, 4.0), atol=1e-3)


def test_branches_without_prompt_have_negative_one(model: SDXL, loras) -> None:
    branches = [Branch(-2.0, (1.0,), None), Branch(3.0, (1.0,), "prompt")]
    with model.attach(loras[:1]) as adapters:
        found = sample_latents(model, PROMPTS, [3, 4], 2, 3.0, adapters, None, branches, negative=NEGATIVE)
        guided = sample_latents(model, PROMPTS, [3, 4], 2, 3.0, adapters, None, None, negative=NEGATIVE)
    torch.testing.assert_close(found, guided, rtol=1e-4, atol=1e-4)


def test_keys_change_with_negative_prompt_only() -> None:
    spec = GenerateSpec(images=4, steps=30, guidance=5.0, batch=1)
    assert spec.params() == {"images": 4, "steps": 30, "guidance": 5.0, "batch": 1}
    assert replace(spec, negative="").params() == spec.params()
    assert replace(spec, negative=NEGATIVE).params() == {**spec.params(), "negative": NEGATIVE}
    assert asdict(spec)["negative"] is None


def test_generate_takes_negative_prompt(
    commands: Commands, loras: tuple[Adapter, Adapter], folder: Path, tmp_path: Path
) -> None:
    for name, lora in zip("ab", loras, strict=True):
        lora.save(tmp_path / f"{name}.safetensors", format="store")
    words = ["task=generate", "content=a.safetensors", "style=b.safetensors", "model=micro",
             f"model.path={folder}", "method=direct",
             "prompt=a boat", "generate.images=1", "generate.steps=2", "trainer=cpu"]  # fmt: skip
    images = {}
    for output, more in (("plain", []), ("less", [f"negative={NEGATIVE}"])):
        done = commands.run(*words, f"output={output}", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        images[output] = np.asarray(Image.open(tmp_path / output / "00.png")).astype(int)
    assert np.abs(images["plain"] - images["less"]).max() > 0
    manifest = json.loads((tmp_path / "less" / "manifest.json").read_text())
    assert manifest["negative"] == NEGATIVE
    warned = commands.run(*words, f"negative={' '.join(['blurry'] * 20)}", "output=long", cwd=tmp_path)
    assert warned.returncode == 0 and "warning: " in warned.stderr and "blurry" in warned.stderr
    refused = commands.run(*words, f"negative={NEGATIVE}", "generate.guidance=1", cwd=tmp_path)
    assert refused.returncode == 2 and "has no effect without guidance; use" in refused.stderr


def test_negative_prompt_that_is_cut_is_error_before_training(
    commands: Commands, tiny: list[str], tmp_path: Path
) -> None:
    pair = ["dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", f"output={tmp_path}"]
    done = commands.run(*tiny, *pair, "method=direct", f"negative={' '.join(['blurry'] * 20)}", cwd=tmp_path)
    assert done.returncode == 2 and "blurry" in done.stderr and "32" in done.stderr, done.stderr
    assert not list(tmp_path.glob("store/personalize/*"))
