"""Learned token embeddings: against a pipeline with real new tokens, in diffusers, and in a whole run."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import load_file

from lorabench.base import UserError, seed_of
from lorabench.config.recipe import token_recipe
from lorabench.config.schemas import LoRASpec
from lorabench.lora.adapter import Adapter
from lorabench.lora.export import export
from lorabench.merging.method import load
from lorabench.models.noise import DDPM, NOISY
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.tokens import LearnedTokens, invert, words_as_token
from lorabench.personalization.training import Environment

TRIGGER = "sks"
ENCODERS = ("text_encoder", "text_encoder_2")


@pytest.fixture
def concept(pair):
    return replace(pair.contents[0], token=TRIGGER)


@pytest.fixture
def spec(lora_spec: LoRASpec) -> LoRASpec:
    return token_recipe(lora_spec, 0.05)


def with_tokens(pipeline: StableDiffusionXLPipeline, vectors: dict[str, torch.Tensor]) -> Any:
    """Return a copy whose tokenizers know the trigger as a token of its own, with these vectors."""
    found: Any = copy.deepcopy(pipeline)
    for encoder, tokenizer in zip(ENCODERS, (found.tokenizer, found.tokenizer_2), strict=True):
        network = getattr(found, encoder)
        assert tokenizer.add_tokens(TRIGGER) == 1
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        network.get_input_embeddings().weight.data[-1] = vectors[encoder][0]
        network.get_input_embeddings().weight.requires_grad_(True)
    return found


def test_gradient_is_that_of_new_rows_of_embedding_matrices(model: SDXL, concept, spec: LoRASpec) -> None:
    """A step of ours against diffusers' `encode_prompt` with resized embeddings and the loss written out."""
    start = words_as_token(model, concept.word)
    module = LearnedTokens(model, {TRIGGER: start}, concept, spec, seed=7)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    with model.fresh_prompts(), model.learned_tokens(module.tokens):
        module.training_step(0).backward()

    draw = torch.Generator().manual_seed(seed_of(7, 0))
    batch = module.images.draw(model, spec.batch, draw)
    other = with_tokens(model.pipeline, start)
    states, _, pooled, _ = other.encode_prompt(batch.prompts, device="cpu", do_classifier_free_guidance=False)
    bar = other.scheduler.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    noised = bar.sqrt() * batch.latents + (1 - bar).sqrt() * batch.noise
    added = {"text_embeds": pooled, "time_ids": batch.crops.float()}
    prediction = other.unet(noised, batch.t, states, added_cond_kwargs=added).sample
    assert other.scheduler.config["prediction_type"] == "v_prediction"
    velocity = bar.sqrt() * batch.noise - (1 - bar).sqrt() * batch.latents
    (prediction - velocity).square().mean().backward()
    for encoder in ENCODERS:
        expected = getattr(other, encoder).get_input_embeddings().weight.grad[-1:]
        found = module.tokens[TRIGGER][encoder].grad
        assert found is not None and expected.abs().max() > 1e-7
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_only_embeddings_learn(model: SDXL, concept, spec: LoRASpec) -> None:
    start = words_as_token(model, concept.word)
    found = invert(model, concept, spec, Environment(0, CPU))
    assert not found and not found.text and list(found.tokens) == [TRIGGER]
    for encoder in ENCODERS:
        assert found.tokens[TRIGGER][encoder].shape == start[encoder].shape
        assert not torch.equal(found.tokens[TRIGGER][encoder], start[encoder])
    parts = (model.denoiser, model.text, model.vae)
    assert all(each.grad is None and not each.requires_grad for part in parts for each in part.parameters())


def test_token_starts_at_mean_of_words(model: SDXL) -> None:
    for encoder, vectors in words_as_token(model, "red mug").items():
        ids = model.pipeline.tokenizer("red mug").input_ids[1:-1]
        rows = getattr(model.pipeline, encoder).get_input_embeddings().weight[ids]
        assert len(ids) > 1
        torch.testing.assert_close(vectors, rows.mean(dim=0, keepdim=True))
    with pytest.raises(UserError, match="starts from words, and there are none"):
        words_as_token(model, " ")


def test_killed_training_continues_to_same_embeddings(model: SDXL, concept, spec: LoRASpec, tmp_path: Path) -> None:
    trainer = replace(CPU, checkpoint_every=2)
    whole = invert(model, concept, spec, Environment(0, trainer))

    class Killed(Exception):
        pass

    def kill(done: int) -> None:
        if done == spec.steps:
            raise Killed

    with pytest.raises(Killed):
        invert(model, concept, spec, Environment(0, trainer, kill, scratch=tmp_path))
    assert (tmp_path / "training.pt").is_file()
    steps: list[int] = []
    resumed = invert(model, concept, spec, Environment(0, trainer, steps.append, scratch=tmp_path))
    assert steps == [3]
    for encoder in ENCODERS:
        assert torch.equal(resumed.tokens[TRIGGER][encoder], whole.tokens[TRIGGER][encoder])


def test_diffusers_loads_written_files(model: SDXL, tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, two = ({encoder: torch.randn(1, 32) for encoder in ENCODERS} for _ in range(2))
    merged = export([Adapter({}, tokens={"sks": one}), Adapter({}, tokens={"szn": two})], None, {})
    merged.save(tmp_path / "pair.safetensors", format="diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair_1_emb.safetensors", "pair_emb.safetensors"]
    pipeline: Any = copy.deepcopy(model.pipeline)
    for name, trigger in (("pair_emb", "sks"), ("pair_1_emb", "szn")):
        state = load_file(tmp_path / f"{name}.safetensors")
        for key, encoder, tokenizer in (
            ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
            ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
        ):
            pipeline.load_textual_inversion(state[key], token=[trigger], text_encoder=encoder, tokenizer=tokenizer)
    prompt = "a sks mug in szn style"
    states, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    found = model.encode_prompts([prompt], [merged])
    torch.testing.assert_close(found.tensors[0], states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.tensors[1], pooled, rtol=1e-5, atol=1e-5)


def test_noisy_law_prefers_high_noise() -> None:
    """p(t) is proportional to 1 - cos(pi t / T) / 2 (Inspiration Tree)."""
    count, bins = 100, 10
    draw = torch.Generator().manual_seed(0)
    drawn = DDPM(torch.linspace(0.99, 0.01, count), "epsilon").timesteps(200_000, draw, NOISY)
    t = torch.arange(count, dtype=torch.float64)
    expected = 1 - 0.5 * torch.cos(torch.pi * t / count)
    expected = (expected / expected.sum()).reshape(bins, -1).sum(dim=1)
    found = torch.bincount(drawn, minlength=count).double().reshape(bins, -1).sum(dim=1) / len(drawn)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("textual_inversion+merge.ties", "learns token embeddings and no LoRA, so method/merge=ties has nothing"),
        ("textual_inversion+sampling.switch", "so method/sampling=switch cannot scale content"),
    ],
)
def test_components_that_need_lora_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(name)


def test_recipes_and_concepts_without_token_are_refused(model: SDXL, concept, lora_spec: LoRASpec, spec, pair) -> None:
    with pytest.raises(UserError, match=r"use lora\.prior_weight=0"):
        token_recipe(replace(lora_spec, prior_weight=1.0), 0.1)
    with pytest.raises(UserError, match="captions of mug_1 do not contain the token 'xyz'"):
        invert(model, replace(concept, token="xyz"), spec, Environment(0, CPU))
    several = replace(pair, contents=pair.contents * 2)
    with pytest.raises(UserError, match="one token for several subjects"):
        load("textual_inversion").training.outputs(several, lora_spec)


def test_run_writes_embedding_files(commands, tiny: list[str], tmp_path: Path) -> None:
    result = commands.run(
        *tiny, f"output={tmp_path}", "method=textual_inversion", "dataset=microworld_stylised",
        "dataset.pairs=[mug_1/ink_1]", "dataset.references=1", "dataset.scenes=1", "uses=[content,style]",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    [run] = tmp_path.glob("adhoc/textual_inversion-none-s0")
    names = sorted((path.name for path in (run / "merged").iterdir()), key=len)
    assert names == ["mug_1+ink_1_emb.safetensors", "mug_1+ink_1_1_emb.safetensors"]
    assert [Adapter.load(run / "merged" / name).tokens.popitem()[0] for name in names] == ["ink", "sks"]
    assert len(list((run / "uses" / "style" / "textual_inversion" / "mug_1+ink_1").glob("*.png"))) == 2
