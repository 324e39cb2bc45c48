"""Adapters of UnZipLoRA in use: columns in files, merge vectors, and three prompts while sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from merges import sampled
from torch import Tensor
from unzip_training import STEPS, Dense, fit_module, job_of, plain_job, stylised_pair, trainee

from lorabench.base import seed_of
from lorabench.data.concepts import ROLES
from lorabench.lora.adapter import LoRA
from lorabench.lora.masks import Masks
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.initial import random_factors
from lorabench.sampling.sampler import sample_latents


def test_files_hold_masks_and_joint_use_has_merge_vectors(model: SDXL, lora_spec) -> None:
    """The masked forward pass in training equals adapters with columns folded in; a single one has no merge vectors."""
    job = job_of(replace(lora_spec, steps=STEPS), merge_lr=0.1)
    with trainee(model, job) as module:
        fit_module(module, STEPS)
        module.mask(True)
        rows = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
        t, words, own = torch.tensor([10, 700]), model.encode_prompts([job.prompts.full] * 2), module.streams(2)
        with torch.no_grad():
            trained = model.predict(rows, t, words, own)
        loras = [LoRA({name: layer.factors()[k] for name, layer in module.layers.items()}) for k in range(2)]
        found = module.adapters(loras)
        columns = [dict(zip(module.layers, each.split(module.widths), strict=True)) for each in module.columns]
    with model.attach(found), torch.no_grad():
        torch.testing.assert_close(model.predict(rows, t, words, own), trained, atol=1e-5, rtol=1e-4)
    for k, lora in enumerate(found):
        assert any(each.only().min() < 1 for each in lora.masks.values())
        for name, factors in lora.items():
            assert not factors.up[columns[k][name] == 0].any() and factors.up[columns[k][name] == 1].any()
            torch.testing.assert_close(lora.jointly()[name].up, lora.masks[name].only()[:, None] * factors.up)


def test_three_prompts_are_rows_of_their_own(model: SDXL, lora_spec) -> None:
    """Sampling with separate prompts against a loop of two dense forwards per step."""
    job = plain_job(lora_spec)
    guidance, steps, seeds = 3.0, 3, [1, 2]
    scene = stylised_pair("red").alone
    layers = model.layers.trained()
    loras = [random_factors(layers, 8, seed_of("sampled", role), 0.2) for role in ROLES]
    found = latents_of(model, loras, [scene] * 2, seeds, steps, guidance)
    names = list(loras[0])
    dense = Dense(model, names, [[lora[name] for name in names] for lora in loras], 1.0)
    dense.o = [[torch.ones(model.layers[name].out_features) for name in names]] * 2
    sampler = model.sampler(steps)
    latents = sampler.start(model.initial_noise(seeds))
    words = {each: model.encode_prompts([each] * 2) for each in job.prompts}
    empty = model.unconditional(2)
    try:
        with torch.no_grad():
            for t in sampler.timesteps:
                rows = sampler.scaled(latents, t)
                dense.own = [empty.tensors[0]] * 2
                without = model.predict(rows, t, empty)
                dense.own = [words[each].tensors[0] for each in job.prompts[1:]]
                whole = model.predict(rows, t, words[job.prompts.full])
                latents = sampler.step(without + guidance * (whole - without), t, latents)
    finally:
        dense.remove()
    torch.testing.assert_close(found, latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_equal_prompts_are_plain_sampling(model: SDXL, guidance: float) -> None:
    loras = [random_factors(model.layers.trained(), 8, seed_of("sampled", role), 0.2) for role in ROLES]
    scene = stylised_pair("red").alone
    plain = latents_of(model, loras, [scene.prompt], [1], 3, guidance, "plain")
    for same in (scene.prompt, scene._replace(subject=scene.prompt, styled=scene.prompt)):
        found = latents_of(model, loras, [same], [1], 3, guidance)
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    unseparated = latents_of(model, loras, [scene], [1], 3, guidance, prompt_separation=False)
    torch.testing.assert_close(unseparated, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(latents_of(model, loras, [scene], [1], 3, guidance), plain, atol=1e-3)


def latents_of(model, loras, prompts, seeds, steps, guidance, rule="three_prompts", **settings) -> Tensor:
    """Return latents of the direct merge under a sampling rule."""
    method = load(f"direct+sampling.{rule}", **settings)
    scales, branches = sampled(model, method, loras, ROLES, steps, guidance)
    with model.attach(loras) as adapters:
        return sample_latents(model, prompts, seeds, steps, guidance, adapters, scales, branches)


def test_adapter_by_itself_has_no_merge_vectors(model: SDXL, lora_spec) -> None:
    """`uses=[content]` shows the content LoRA as its file has it; `joint` shows both with their merge vectors."""
    loras = [random_factors(model.layers.trained(), 4, seed_of("sampled", role)) for role in ROLES]
    masked = [
        LoRA(dict(lora), masks={name: Masks(o=torch.full((len(each.up),), 0.5)) for name, each in lora.items()})
        for lora in loras
    ]
    merge = load("direct").merge
    content_only = merge.parts(masked, ROLES, None, {"content": 1.0, "style": 0.0})
    both = merge.parts(masked, ROLES, None, {"content": 1.0, "style": 0.5})
    assert content_only is not None and both is not None
    with model.attach(content_only.adapters) as adapters:  # which applies masks that are still there
        ups = {name: layer.up[:, :4] for name, layer in adapters.layers.items()}
    for name, each in loras[0].items():
        assert torch.equal(ups[name], each.up) and torch.equal(both.adapters[0][name].up, each.up / 2)


def test_whole_run_with_each_use(commands, tiny, tmp_path) -> None:
    pairs = ["dataset=microworld_stylised", "dataset.pairs=[mug_1/ink_1]", "dataset.scenes=1", "uses=[joint,content]"]
    result = commands.run(*tiny, *pairs, "method=unziplora", f"output={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "| unziplora |" in result.stdout and list(tmp_path.glob("*/*/report.html"))
