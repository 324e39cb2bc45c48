"""The training of UnZipLoRA against dense updates, one operation at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CPU
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from unzip_training import STEPS, Dense, backward, job_of, plain, plain_job, slope, stylised_pair, trainee

from benchmarks import unzip as benchmark
from lorabench.base import UserError, seed_of
from lorabench.engine.lightning import quiet_trainer
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.initial import random_factors
from lorabench.personalization.schemes.unziplora import UnZipLoRA
from lorabench.personalization.training import Environment
from lorabench.personalization.unzip import gradients, unzip


@pytest.mark.parametrize("merge_gradient", ["own", "both"])
def test_every_step_is_that_of_dense_updates(model: SDXL, lora_spec, merge_gradient: str) -> None:
    """Loss, gradients and choice of columns, on factors and merge vectors that change by plain gradient descent."""
    spec = replace(lora_spec, steps=STEPS, rank=4)
    job = job_of(spec, merge_gradient=merge_gradient, disjoint=False, lambda_orthogonality=0.7, initial_up=0.3)
    every = job.scheme.all_columns(model.layers, spec)
    with trainee(model, job) as module:
        module.trainer = quiet_trainer(model.device, "32-true")
        for step in range(STEPS):
            backward(module, step)
            names, layers = list(module.layers), list(module.layers.values())
            m, v = (
                [each[k].clone().split(module.widths) for k in range(2)]
                for each in (module.columns, module.vectors.detach())
            )
            factors = [[layer.factors()[k] for layer in layers] for k in range(2)]
            with plain(module):
                dense = Dense(model, names, factors, spec.alpha / spec.rank)
                vectors = [[nn.Parameter(each.clone()) for each in v[k]] for k in range(2)]
                loss = dense.loss(module, step, m, vectors, 0.7 if step in (2, 3, 4, 6, 7) else None)
                loss.backward()
                dense.remove()
            torch.testing.assert_close(module.loss, loss.detach(), atol=1e-5, rtol=1e-5)
            for k in range(2):
                for index, layer in enumerate(layers):
                    found, up, down = gradients(layer)[k], dense.ups[k][index], dense.downs[k][index]
                    torch.testing.assert_close(found.up, up.grad, atol=1e-5, rtol=1e-4)
                    torch.testing.assert_close(found.down, down.grad, atol=1e-5, rtol=1e-4)
                if module.vectors.grad is not None:
                    expected = torch.cat([slope(each) for each in vectors[k]])
                    learns = torch.cat(m[0]) * torch.cat(m[1]) if merge_gradient == "both" else torch.cat(m[k])
                    torch.testing.assert_close(module.vectors.grad[k], expected * learns, atol=1e-5, rtol=1e-4)
            module.on_after_backward()
            chosen = [each.split(module.widths) for each in module.columns]
            for k in range(2):
                for index, name in enumerate(names):
                    if step in (1, 5) and not every[name][k]:
                        check_choice(dense, k, index, v[k][index], chosen[k][index])
                    else:
                        assert torch.equal(chosen[k][index], m[k][index])
            with torch.no_grad():
                for each in module.learned:
                    each -= 0.1 * (0 if each.grad is None else each.grad)
                module.vectors.clamp_(0, 1)
        assert module.vectors.min() < 1


def check_choice(dense: Dense, k: int, index: int, o: Tensor, chosen: Tensor) -> None:
    """Check that 30 % of the columns are chosen, and that none has a higher mean of |dW G| than those."""
    up, down = dense.ups[k][index], dense.downs[k][index]
    assert up.grad is not None and down.grad is not None
    u, d = dense.scale * o[:, None] * up.detach(), down.detach()
    change = u @ down.grad + dense.scale * o[:, None] * up.grad @ d
    rated = ((u @ d) * change).abs().mean(1)
    count = int(0.3 * len(u))
    assert set(chosen.tolist()) == {0.0, 1.0} and int(chosen.sum()) == count
    torch.testing.assert_close(rated[chosen == 1].sort().values, rated.topk(count).values.sort().values)


def test_gradients_reach_what_should_learn(model: SDXL, lora_spec) -> None:
    with trainee(model, plain_job(lora_spec)) as module:
        module.columns.copy_(torch.rand(module.columns.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
        columns = module.columns.split(module.widths, dim=1)
        for step, masked in ((0, False), (1, False), (2, True), (5, False), (6, True)):
            backward(module, step)
            for layer, chosen in zip(module.layers.values(), columns, strict=True):
                assert layer.base.weight.grad is None and slope(layer.down).any()
                grown = slope(layer.up).reshape(len(layer.up), 2, -1).abs().sum(-1).T > 0
                assert not masked or torch.equal(grown, chosen > 0)
                assert masked or grown.all()
            assert (module.vectors.grad is not None) == masked
            assert not masked or not slope(module.vectors)[module.columns == 0].any()


def test_merge_vectors_of_released_code_learn_in_columns_of_both(model: SDXL, lora_spec) -> None:
    with trainee(model, job_of(replace(lora_spec, steps=STEPS), "unziplora_released")) as module:
        module.columns.copy_(torch.rand(module.columns.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
        backward(module, 2)
        learned = slope(module.vectors).abs().sum(0) > 0
        assert torch.equal(learned, module.columns.prod(0) > 0)


@pytest.mark.parametrize(("orthogonality", "expected"), [("mean", 1.0), ("sum", None)])
def test_overlap_of_everything(model: SDXL, lora_spec, orthogonality: str, expected: float | None) -> None:
    """The mean does not depend on the size of the network; the sum does."""
    with trainee(model, job_of(replace(lora_spec, steps=STEPS), orthogonality=orthogonality)) as module:
        whole = float(module.overlap(torch.ones_like(module.vectors)))
        assert whole == pytest.approx(expected if expected else sum(module.widths))


def test_without_masks_and_own_prompts_it_is_two_ordinary_loras(model: SDXL, lora_spec) -> None:
    spec = replace(lora_spec, steps=STEPS, rank=8)
    job = job_of(spec, columns=1.0, merge_lr=0.0, prompt_separation=False, initial_up=0.2)
    with trainee(model, job) as module:
        for step in range(3):
            backward(module, step)
            assert all(layer.masks is None for layer in module.layers.values())
            draw = torch.Generator().manual_seed(seed_of(0, step))
            batch = module.images.draw(model, spec.batch, draw)
            prediction = model.predict(
                model.process.add_noise(batch.latents, batch.noise, batch.t), batch.t,
                model.with_crops(model.encode_prompts(batch.prompts), batch.crops),
            )  # fmt: skip
            loss = mse_loss(prediction, model.process.target(batch.latents, batch.noise, batch.t))
            torch.testing.assert_close(module.training_step(step), loss, atol=1e-6, rtol=1e-5)
    separated = replace(job, scheme=replace(job.scheme, prompt_separation=True))
    with trainee(model, separated) as module:
        module.log = lambda *arguments, **options: None
        assert abs(float(module.training_step(2).detach() - loss.detach())) > 1e-5  # the prompts matter
        module.own = [model.encode_prompts([job.prompts.full])] * 2
        torch.testing.assert_close(module.training_step(2), loss, atol=2e-6, rtol=0)


def test_both_factors_start_at_random_with_stated_scale(model: SDXL) -> None:
    layers = model.layers.trained()
    for scale in (1.0, 0.1):
        found = random_factors(layers, 16, 3, scale)
        downs = torch.cat([each.down.flatten() for each in found.values()])
        ups = torch.cat([each.up.flatten() for each in found.values()])
        assert float(downs.std()) == pytest.approx(1 / 16, rel=0.02)
        assert float(ups.std()) == pytest.approx(scale / 16, rel=0.02)
        updates = torch.cat([(each.up @ each.down).flatten() for each in found.values()])
        assert float(updates.std()) == pytest.approx(scale / 16**1.5, rel=0.05)


@pytest.mark.parametrize(("preset", "killed"), [("unziplora", 4), ("unziplora_released", 2)])
def test_killed_training_goes_on_to_same_result(model, lora_spec, tmp_path, preset, killed) -> None:
    """Columns are chosen after steps 1 and 4, so that a choice comes before the kill, or after it."""
    job = job_of(replace(lora_spec, steps=6, schedule="cosine"), preset)
    whole = unzip(model, job, Environment(0, CPU))

    def stop(done: int) -> None:
        if done == killed:
            raise KeyboardInterrupt

    trainer = replace(CPU, checkpoint_every=1)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        unzip(model, job, Environment(0, trainer, stop, scratch=tmp_path))
    done: list[int] = []
    again = unzip(model, job, Environment(0, trainer, done.append, scratch=tmp_path))
    assert done[0] >= killed - 1
    for one, other in zip(whole, again, strict=True):
        assert all(torch.equal(one[name].up, other[name].up) for name in one)
        assert all(torch.equal(one[name].down, other[name].down) for name in one)
        assert all(torch.equal(mask.only(), other.masks[name].only()) for name, mask in one.masks.items())


def test_outputs_are_of_one_job_and_key_has_all_settings(lora_spec) -> None:
    training, pair = load("direct+training.unziplora").training, stylised_pair("red")
    content, style = training.outputs(pair, lora_spec)
    assert content.job is style.job and [each.role for each in (content, style)] == ["content", "style"]
    job: Any = content.job
    assert tuple(job.prompts) == ("a sks mug in ink style", "a sks mug", "a mug in ink style")
    assert [image.prompt for image in content.job.concept.images] == ["a sks mug in ink style"]
    assert [each.shown.images[0].prompt for each in (content, style)] == ["a sks mug", "a mug in ink style"]
    changes: list[dict[str, Any]] = [{"columns": 0.2}, {"style_blocks": ["up_blocks.1"]}, {"prompt_separation": False}]
    for changed in changes:
        other = load("direct+training.unziplora", **changed).training.outputs(pair, lora_spec)[0].job
        assert other.params != content.job.params


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_encoders": True}, r"lora\.text_encoders=True is not supported"),
        ({"prior_weight": 1.0}, r"lora\.prior_weight=1\.0 is not supported"),
        ({"steps": 2}, r"lora\.steps=2 must be at least 3"),
        ({"optimizer": "prodigy"}, r"use lora\.optimizer=adamw"),
    ],
)
def test_recipe_that_does_not_fit_is_refused(lora_spec, changed, message) -> None:
    if changed.get("optimizer") == "prodigy":
        pytest.importorskip("prodigyopt")
    with pytest.raises(UserError, match=message):
        load("direct+training.unziplora").training.outputs(stylised_pair("red"), replace(lora_spec, **changed))


def test_images_of_their_own_are_refused(pair, lora_spec) -> None:
    with pytest.raises(UserError, match="use dataset=microworld_stylised"):
        load("direct+training.unziplora").training.outputs(pair, lora_spec)


def test_settings_of_scheme_are_found() -> None:
    released: Any = load("direct+training.unziplora_released").training
    assert isinstance(released, UnZipLoRA) and (released.columns, released.ties) == (0.1, "strict")


def test_benchmark_compares_equal_steps(model: SDXL) -> None:
    """The dense step of benchmarks/unzip.py has the loss and the gradients of the product's step."""
    ours, dense = benchmark.Ours(model, "micro"), benchmark.Dense(model, "micro")
    assert benchmark.difference(model, ours, dense) < benchmark.TOLERANCE
    plain = benchmark.BUILDERS[benchmark.JOINT](model, "micro")
    choosing = benchmark.BUILDERS[benchmark.CHOICE](model, "micro")
    for contender in (plain, choosing):
        benchmark.put(model, contender, True)
        before = choosing.module.columns.clone()
        assert float(contender.run(0)) > 0
        benchmark.put(model, contender, False)
        assert torch.equal(before, choosing.module.columns) == (contender is plain)
