"""Our sampler against StableDiffusionXLPipeline with load_lora_weights; images that do not depend on their batch."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, SDXL_SCHEDULE
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from merges import draw, merge_all, sampled

from lorabench.base import UserError
from lorabench.data.concepts import ROLES
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import export
from lorabench.merging.merge import MergeEnvironment, MergeItem
from lorabench.merging.method import load
from lorabench.merging.strength import merged_at_strength
from lorabench.models.noise import DDPM
from lorabench.models.sdxl.model import SDXL
from lorabench.sampling.generate import generate
from lorabench.sampling.parts import StepScales
from lorabench.sampling.sampler import decoded, sample_latents

PROMPTS = ["a sks mug in szn style", "a boat"]


@pytest.fixture(params=["micro", "sdxl"])
def any_model(request, folder) -> SDXL:
    """Test the micro model's scheduler (velocity, trailing), and SDXL's (noise, leading; zeros for an empty prompt)."""
    model = SDXL.load(folder)
    if request.param == "sdxl":
        model.pipeline.scheduler = EulerDiscreteScheduler(**SDXL_SCHEDULE)
        model.pipeline.register_to_config(force_zeros_for_empty_prompt=True)
        model = SDXL(model.pipeline)
    return model


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_equals_diffusers_pipeline_with_loaded_lora(any_model, loras, tmp_path, guidance) -> None:
    lora = export(loras)
    lora.save(tmp_path / "lora.safetensors")
    with any_model.attach([lora]):
        ours = sample_latents(any_model, PROMPTS, [3, 4], 4, guidance)
    pipeline: Any = any_model.pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=any_model.initial_noise([3, 4]),
        output_type="latent",
    ).images
    pipeline.unload_lora_weights()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_images_equal_those_of_pipeline(model) -> None:
    ours = decoded(model, sample_latents(model, PROMPTS, [3, 4], 2, 1.0))
    pipeline: Any = model.pipeline
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=2,
        guidance_scale=1.0,
        latents=model.initial_noise([3, 4]),
        output_type="np",
    ).images
    assert ours.dtype == torch.uint8 and ours.shape == (2, 64, 64, 3)
    np.testing.assert_allclose(ours.numpy(), theirs * 255, atol=0.51)  # we round to whole levels


def test_images_do_not_depend_on_their_batch(model, loras, generate_spec) -> None:
    prompts, seeds = [PROMPTS[0]] * 3, [7, 8, 9]
    done: list[int] = []
    images = generate(model, loras, prompts, seeds, generate_spec, CPU, progress=done.append)
    assert images.shape == (3, 64, 64, 3) and done == [2, 3]
    single = generate(model, loras, prompts[:1], seeds[2:], generate_spec, CPU)
    np.testing.assert_allclose(single[0].astype(int), images[2].astype(int), atol=1)


@pytest.mark.parametrize(
    ("frame", "used"), [("base", []), ("content_only", [0]), ("style_only", [1]), ("direct", [0, 1])]
)
def test_baselines_are_adapters_they_name(model, loras, generate_spec, frame, used) -> None:
    scales, _ = sampled(model, load(frame), loras, ROLES, generate_spec.steps)
    images = generate(model, loras, PROMPTS, [1, 2], generate_spec, CPU, scales=scales)
    with model.attach([loras[k] for k in used]):
        expected = decoded(model, sample_latents(model, PROMPTS, [1, 2], generate_spec.steps, generate_spec.guidance))
    np.testing.assert_allclose(images.astype(int), expected.numpy().astype(int), atol=1)


def test_scales_may_differ_by_layer_and_step(model, loras) -> None:
    layers = list(loras[0])
    values = torch.zeros(2, len(layers), 2, dtype=torch.float64)
    for index, layer in enumerate(layers):
        values[:, index, 0 if layer.startswith("mid_block") else 1] = torch.tensor([0.5, 1.0])
    with model.attach(loras) as adapters:
        decoded(model, sample_latents(model, PROMPTS, [1, 2], 2, 1.0, adapters, StepScales(layers, values, {})))
        mid = next(module for layer, module in adapters.layers.items() if layer.startswith("mid_block"))
        assert mid.scale is not None and mid.scale.tolist() == [[1, 1, 1, 0, 0]]
        adapters.rows(StepScales(layers, values, {}).at(0))
        assert mid.scale.tolist() == [[0.5, 0.5, 0.5, 0, 0]]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_target_and_clean_estimate_are_schedulers_own(model, prediction_type) -> None:
    scheduler: Any = DDPMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type=prediction_type, clip_sample=False
    )
    model.process = DDPM(scheduler.alphas_cumprod, prediction_type)
    torch.manual_seed(0)
    latents, noise, t = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4), torch.tensor([20, 700])
    noised = model.process.add_noise(latents, noise, t)
    torch.testing.assert_close(noised, scheduler.add_noise(latents, noise, t))
    target = model.process.target(latents, noise, t)
    if prediction_type == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(latents, noise, t))
    prediction = torch.randn(2, 8, 4, 4)
    ours = model.process.clean(noised, t, prediction)
    for row in range(2):
        step = scheduler.step(prediction[row : row + 1], int(t[row]), noised[row : row + 1])
        torch.testing.assert_close(ours[row : row + 1], step.pred_original_sample)
    torch.testing.assert_close(model.process.clean(noised, t, target), latents, rtol=1e-4, atol=1e-4)


def test_clean_estimate_is_finite_without_signal(model) -> None:
    scheduler = EulerDiscreteScheduler(rescale_betas_zero_snr=True, **SDXL_SCHEDULE)
    model.pipeline.scheduler = scheduler
    model = SDXL(model.pipeline)
    t, noise = torch.tensor([999]), torch.randn(1, 8, 4, 4)
    estimate = model.process.clean(noise, t, noise + 0.1)
    again = model.process.add_noise(estimate, noise, t)
    torch.testing.assert_close(again, noise - 0.1, rtol=1e-3, atol=1e-3)


def test_folder_that_is_no_sdxl_model_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="not a diffusers model folder"):
        SDXL.load(tmp_path / "nowhere")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="StableDiffusionPipeline, which is not supported"):
        SDXL.load(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(UserError, match="incomplete"):
        SDXL.load(tmp_path)


def test_strengths_of_roles_multiply_those_of_method(model, loras, pair, generate_spec) -> None:
    seeds, prompts = [1, 2], [pair.prompt] * 2
    item, ends = MergeItem(loras, pair), []
    for name in ("direct", "ziplora", "klora"):  # a file, a learned one, a switch
        overrides: Any = {"fit": {"steps": 2, "lr": 0.1, "batch": 1}} if name == "ziplora" else {}
        method = load(name, **overrides)
        [merged] = merge_all(model, method, [item])

        def images(strength, method=method, merged=merged):
            return draw(
                model, method, lambda: loras, pair.roles, merged, prompts, seeds, generate_spec, strength=strength
            )

        same = images({"content": 1.0, "style": 1.0}).astype(int) - images(None)
        assert abs(same).max() <= 1
        ends.append(images({"content": 0.0, "style": 0.0}))
    base = generate(model, [], prompts, seeds, generate_spec, CPU)
    assert all((end == base).all() for end in ends)


@pytest.mark.parametrize("name", ["dare_ties", "ssr_merge", "svd"])
def test_layerwise_merges_are_recomputed_at_other_strengths(model, loras, pair, name) -> None:
    method, env = load(name), MergeEnvironment(model.layers, model, 5, CPU)
    assert not method.merge.keeps_parts
    [merged] = merge_all(model, method, [MergeItem(loras, pair)], 5)

    def again(style: float) -> LoRA:
        return merged_at_strength(method.merge, loras, pair, {"content": 1.0, "style": style}, env).file

    same = again(1.0)
    assert all(torch.equal(same[layer].up, merged.file[layer].up) for layer in merged.file)  # the same draws
    half = again(0.5)
    weaker = LoRA({layer: Factors(each.down, each.up * 0.5) for layer, each in loras[1].items()})
    [expected] = merge_all(model, method, [MergeItem((loras[0], weaker), pair)], 5)
    assert all(torch.equal(half[layer].up, expected.file[layer].up) for layer in half)


@pytest.mark.parametrize("name", ["direct", "ziprank_closed", "duolora", "lora_rar"])
def test_masked_merges_keep_their_adapters_apart(name) -> None:
    assert load(name).merge.keeps_parts
