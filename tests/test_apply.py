"""`lorabench.apply`: every sampling rule on a diffusers pipeline makes the latents of our own sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SDXL_SCHEDULE
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from merges import sampled
from torch import Tensor

import lorabench
from lorabench.base import UserError
from lorabench.config.components import component_name
from lorabench.data.concepts import ROLES
from lorabench.lora.adapter import Adapter
from lorabench.lora.export import export
from lorabench.lora.factors import Factors
from lorabench.merging import presets
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.sampling.sampler import sample_latents

PROMPTS, SEEDS, STEPS = ["a sks mug in szn style", "a boat"], [3, 4], 4
TEXT = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
RULES = [
    "klora", "est_lora", "lora_switch", "lora_composite", "pair_customization", "styledrop", "direct+sampling.acfg",
]  # fmt: skip


@pytest.fixture
def pair(model: SDXL, loras: tuple[Adapter, Adapter], tmp_path: Path) -> dict[Path, Adapter]:
    """Files of two LoRAs with a part for a text encoder."""
    module: Any = model.text.get_submodule(TEXT)
    found = {}
    for k, lora in enumerate(loras):
        rng = torch.Generator().manual_seed(k)
        text = Factors(
            torch.randn(2, module.in_features, generator=rng), torch.randn(module.out_features, 2, generator=rng)
        )
        found[tmp_path / f"{'ab'[k]}.safetensors"] = lora.replaced(dict(lora), {TEXT: text})
    for path, lora in found.items():
        lora.save(path, format="store")
    return found


@pytest.fixture(params=["micro", "sdxl"])
def pipeline(request: pytest.FixtureRequest, folder: Path) -> Any:
    """With the scheduler of the micro model, and with that of SDXL and zeros for no prompt."""
    made: Any = StableDiffusionXLPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    if request.param == "sdxl":
        made.scheduler = EulerDiscreteScheduler(**SDXL_SCHEDULE)
        made.register_to_config(force_zeros_for_empty_prompt=True)
    return made


def theirs(pipeline: Any, guidance: float, **options: Any) -> Tensor:
    config = pipeline.unet.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    return pipeline(
        PROMPTS, num_inference_steps=STEPS, guidance_scale=guidance, latents=noise, output_type="latent", **options
    ).images


def close(found: Tensor, expected: Tensor) -> None:
    """Check a relative difference of at most 1e-5."""
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def ours(pipeline: Any, adapters: list[Adapter], method: str, guidance: float, negative: str | None = None) -> Tensor:
    model = SDXL(pipeline)
    scales, branches = sampled(model, load(method), adapters, ROLES, STEPS, guidance)
    with model.attach(adapters) as attached, model.attach_text(adapters, scales.text):
        return sample_latents(model, PROMPTS, SEEDS, STEPS, guidance, attached, scales, branches, negative=negative)


@pytest.mark.parametrize("method", RULES)
def test_rule_makes_latents_of_our_sampler(pipeline: Any, pair: dict[Path, Adapter], method: str) -> None:
    expected = ours(pipeline, list(pair.values()), method, 4.0)
    with lorabench.apply(pipeline, tuple(pair), method=method):
        found = [theirs(pipeline, 4.0) for _ in range(2)]  # steps are counted again in each call
    for each in found:
        close(each, expected)


def test_every_rule_of_presets_is_tested() -> None:
    """Presets with another rule than plain, up to settings; three_prompts is refused."""
    rules = {component_name(load(name).sampling) for name in presets.presets()} - {"plain", "three_prompts"}
    assert {component_name(load(name).sampling) for name in RULES} == rules


def test_routing_by_markers_is_refused(pipeline: Any, pair: dict[Path, Adapter]) -> None:
    with pytest.raises(UserError, match="craft reads markers in prompts, which apply does not see"):
        lorabench.apply(pipeline, tuple(pair), method="craft")


def test_merge_without_parts_is_guided_as_one_adapter(pipeline: Any, pair: dict[Path, Adapter]) -> None:
    settings = {"ablation": "constant_schedule"}
    with lorabench.apply(pipeline, tuple(pair), method="svd+sampling.acfg", rank=5, **settings):
        found = theirs(pipeline, 4.0)
    with lorabench.apply(pipeline, tuple(pair), method="direct+sampling.acfg", **settings):
        close(theirs(pipeline, 4.0), found)  # svd at the sum of the ranks is the direct merge


@pytest.mark.parametrize(("method", "guidance"), [("klora", 1.0), ("lora_switch", 1.0), ("lora_composite", 1.0)])
def test_rule_without_guidance(pipeline: Any, pair: dict[Path, Adapter], method: str, guidance: float) -> None:
    expected = ours(pipeline, list(pair.values()), method, guidance)
    with lorabench.apply(pipeline, tuple(pair), method=method):
        close(theirs(pipeline, guidance), expected)


def test_negative_prompt_of_pipeline_is_used(pipeline: Any, pair: dict[Path, Adapter]) -> None:
    expected = ours(pipeline, list(pair.values()), "lora_composite", 4.0, "dark")
    with lorabench.apply(pipeline, tuple(pair), method="lora_composite"):
        found = theirs(pipeline, 4.0, negative_prompt=["dark"] * 2)
    close(found, expected)


def test_plain_methods_and_merged_files_are_applied(
    pipeline: Any, pair: dict[Path, Adapter], folder: Path, tmp_path: Path
) -> None:
    model, merged = SDXL(pipeline), export(list(pair.values()))
    with model.attach([merged]), model.attach_text([merged]):
        expected = sample_latents(model, PROMPTS, SEEDS, STEPS, 4.0)
    (tmp_path / "run" / "merged").mkdir(parents=True)
    merged.save(tmp_path / "run" / "merged" / "a+b.safetensors", format="store")
    for source in (tuple(pair), tmp_path / "run", str(tmp_path / "run" / "merged" / "a+b.safetensors")):
        with lorabench.apply(pipeline, source, method="direct"):
            close(theirs(pipeline, 4.0), expected)


def test_pipeline_is_as_before_after_removal(pipeline: Any, pair: dict[Path, Adapter]) -> None:
    before, modules, processors = (
        theirs(pipeline, 4.0),
        dict(pipeline.unet.named_modules()),
        pipeline.unet.attn_processors,
    )
    applied = lorabench.apply(pipeline, tuple(pair), method="lora_composite")
    assert not torch.allclose(theirs(pipeline, 4.0), before, atol=1e-3)
    applied.remove()
    torch.testing.assert_close(theirs(pipeline, 4.0), before, rtol=0, atol=0)
    assert dict(pipeline.unet.named_modules()) == modules and pipeline.unet.attn_processors == processors


def test_what_cannot_be_applied_is_refused(pipeline: Any, pair: dict[Path, Adapter], tmp_path: Path) -> None:
    files, unet = tuple(pair), pipeline.unet
    (tmp_path / "run").mkdir()
    for source, method, words in (
        (files, "ziplora", "ziplora learns its merge, which apply does not do; use task=merge"),
        (files[:1], "klora", "needs a content LoRA and a style LoRA; use"),
        (tmp_path / "run", "direct", "has no merge in merged/; use"),
        (files, "klra", "did you mean klora"),
    ):
        with pytest.raises(UserError, match=words):
            lorabench.apply(pipeline, source, method=method)
    with pytest.raises(UserError, match="NoneType must be a pipeline of SDXL; use StableDiffusionXLPipeline"):
        lorabench.apply(None, files)
    prompts = load("direct+sampling.three_prompts")
    with lorabench.apply(pipeline, files, prompts), pytest.raises(UserError, match="has a prompt for each LoRA, and a"):
        theirs(pipeline, 4.0)
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    with (
        lorabench.apply(pipeline, files),
        pytest.raises(UserError, match="HeunDiscreteScheduler calls the denoiser twice per step; use Euler"),
    ):
        theirs(pipeline, 4.0)
    assert pipeline.unet is unet
    pipeline.load_lora_weights(
        export([Adapter.load(files[0])]).save(tmp_path / "c.safetensors") and tmp_path / "c.safetensors"
    )
    with pytest.raises(UserError, match=r"must have no LoRAs loaded; use pipeline\.unload_lora_weights"):
        lorabench.apply(pipeline, files)
