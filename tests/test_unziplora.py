"""The training of UnZipLoRA against dense updates, one operation at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CPU, reference
from merges import sampled
from test_benchmarks import NewMatrices, dense_shapes
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks import unzip as benchmark
from lorabench.base import UserError, seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES, Concept
from lorabench.data.pairs import Pair
from lorabench.data.pairs import pair as make_pair
from lorabench.data.scenes import Prompts
from lorabench.engine.lightning import fit, quiet_trainer
from lorabench.lora.adapter import LoRA
from lorabench.lora.factors import Factors
from lorabench.lora.masks import Masks
from lorabench.merging.method import load
from lorabench.models.autoencoder import pixels
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.columns import choose, chooses, dedicated, is_masked, period_of, scores
from lorabench.personalization.initial import random_factors
from lorabench.personalization.schemes.unziplora import UnZipJob, UnZipLoRA
from lorabench.personalization.training import Environment
from lorabench.personalization.unzip import UnZipping, gradients, unzip
from lorabench.sampling.sampler import sample_latents

STEPS = 8  # columns are chosen after steps 1 and 5


def stylised_pair(*colors: str) -> Pair:
    """Return a mug in ink style that is known from images of one color each."""
    prompts = Prompts(style_token="ink")
    of_content, of_style = (
        tuple(reference("mug", caption, color) for color in colors)
        for caption in (prompts.content("mug"), prompts.style("mug"))
    )
    content = Concept("mug_1", "content", "mug", of_content, of_content, token="sks")
    return make_pair((content,), (Concept("ink_1", "style", "ink style", of_style, of_style, token="ink"),), prompts)


@pytest.fixture
def job(lora_spec: LoRASpec) -> UnZipJob:
    return job_of(replace(lora_spec, steps=STEPS, warmup=0, max_grad_norm=None))


def job_of(spec: LoRASpec, preset: str = "unziplora", **settings: Any) -> UnZipJob:
    """Return the job of two images; columns are chosen twice."""
    training = load(f"direct+training.{preset}", **{"recalibrations": 2, "columns": 0.3, **settings}).training
    found: Any = training.outputs(stylised_pair("red", "blue"), spec)[0].job
    return found


@contextmanager
def trainee(model: SDXL, job: UnZipJob) -> Iterator[UnZipping]:
    layers = model.layers.trained()
    starts = [random_factors(layers, job.recipe.rank, seed_of("start", role), job.scheme.initial_up) for role in ROLES]
    with model.attach(starts, dtype=torch.float32) as adapters:
        yield UnZipping(model, adapters, job, 0)


class Dense:
    """W x + sum_k o_k . U_k D_k x_k of every trained layer, as hooks on the plain layers.

    x_k is the content prompt's or the style prompt's states in the keys and values of cross-attention.
    """

    def __init__(self, model: SDXL, names: list[str], factors: list[list[Factors]], scale: float):
        self.model, self.scale = model, scale
        self.ups = [[nn.Parameter(each.up.detach().clone()) for each in several] for several in factors]
        self.downs = [[nn.Parameter(each.down.detach().clone()) for each in several] for several in factors]
        self.o: list[list[Tensor]] = []
        self.own: list[Tensor] = []
        self.hooks = [
            model.unet.get_submodule(name).register_forward_hook(self.added(name, index))
            for index, name in enumerate(names)
        ]

    def added(self, name: str, index: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            for k in range(2):
                x = self.own[k] if name.endswith(("attn2.to_k", "attn2.to_v")) else inputs[0]
                update = self.scale * self.o[k][index][:, None] * (self.ups[k][index] @ self.downs[k][index])
                output = output + x @ update.T
            return output

        return hook

    def loss(self, module: UnZipping, step: int, m: Any, v: Any, weight: float | None) -> Tensor:
        """Return the loss of a step; `weight` of the overlap, None while all columns learn."""
        model, spec, prompts = self.model, module.spec, module.job.prompts
        self.o = [
            [mask * vector if weight else vector.detach() for mask, vector in zip(m[k], v[k], strict=True)]
            for k in range(2)
        ]
        self.own = [model.encode_prompts([each]).tensors[0].expand(spec.batch, -1, -1) for each in prompts[1:]]
        latents = model.encode_images(pixels([each.image(model.resolution) for each in module.job.concept.images]))
        draw = torch.Generator().manual_seed(seed_of(0, step))
        picks = torch.randint(len(latents), (spec.batch,), generator=draw)
        t = torch.randint(1000, (spec.batch,), generator=draw)
        noise = torch.randn(spec.batch, *latents.shape[1:], generator=draw)
        words = model.encode_prompts([prompts.full] * spec.batch)
        prediction = model.predict(model.process.add_noise(latents[picks], noise, t), t, words)
        loss = mse_loss(prediction, model.process.target(latents[picks], noise, t))
        if weight:
            shares = [(content * style).abs().mean() for content, style in zip(*self.o, strict=True)]
            loss = loss + weight * torch.stack(shares).mean()
        return loss

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


@contextmanager
def plain(module: UnZipping) -> Iterator[None]:
    """Take the adapters off within the block."""
    for name, layer in module.layers.items():
        module.model.denoiser.set_submodule(name, layer.base)
    yield
    for name, layer in module.layers.items():
        module.model.denoiser.set_submodule(name, layer)


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


def test_score_is_sum_over_every_entry() -> None:
    draw = torch.Generator().manual_seed(0)
    u, d, du, dd, o = (torch.randn(*shape, generator=draw) for shape in ((4, 2), (2, 5), (4, 2), (2, 5), (4,)))
    products = torch.zeros(4, 5)
    for j in range(4):
        for i in range(5):
            update = sum(o[j] * u[j, r] * d[r, i] for r in range(2))
            products[j, i] = update * sum(o[j] * (u[j, r] * dd[r, i] + du[j, r] * d[r, i]) for r in range(2))
    torch.testing.assert_close(scores(Factors(d, u), Factors(dd, du), o), products.abs().mean(1), atol=1e-5, rtol=1e-5)
    counted = scores(Factors(d, u), Factors(dd, du), o, "count", 0.5)
    torch.testing.assert_close(counted, (products.abs() > 0.5).float().mean(1))
    assert not scores(Factors(d, torch.zeros_like(u)), Factors(dd, du), o).any()  # why `up` does not start at zero


@pytest.mark.parametrize(
    ("rated", "free", "stable", "strict"),
    [
        ([3.0, 1.0, 2.0, 0.0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]),
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]),
        ([5.0, 1.0, 1.0, 1.0], [0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]),
        ([5.0, 4.0, 3.0, 0.0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]),
        ([5.0, 4.0, 3.0, 0.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_choice_with_ties(rated, free, stable, strict) -> None:
    """`stable` takes two; `strict` takes one fewer, and none if all are equal."""
    found = [
        choose(torch.tensor(rated), 2, torch.tensor(free).bool(), ties).int().tolist() for ties in ("stable", "strict")
    ]
    assert found == [stable, strict]


def test_columns_are_chosen_after_steps_1_201_and_401() -> None:
    period = period_of(600, 3)
    assert [step for step in range(600) if chooses(step, period)] == [1, 201, 401]
    assert [step for step in range(600) if not is_masked(step, period)] == [0, 1, 201, 401]


@pytest.mark.parametrize(("preset", "shares"), [("unziplora", [0.25] * 3), ("unziplora_released", [0.25, 0.5, 0.75])])
def test_released_columns_add_up(model: SDXL, lora_spec, preset: str, shares: list[float]) -> None:
    """Fresh columns replace the last ones; released ones are added to them, up to 3 x 25 %."""
    spec = replace(lora_spec, steps=12)
    job = job_of(spec, preset, recalibrations=3, columns=0.25, ties="stable", score="mean", dedicated="none")
    with trainee(model, job) as module:
        seen: dict[int, Tensor] = {}
        before = module.recalibrate

        def recalibrate() -> None:
            before()
            seen[module.update] = module.columns.clone()

        module.recalibrate = recalibrate
        fit_module(module, spec.steps)
    assert list(seen) == [1, 5, 9]
    for columns, share in zip(seen.values(), shares, strict=True):
        assert 0 < float(columns.mean()) <= share
        for each in columns.split(module.widths, dim=1):
            # The style avoids the content's columns; the content may choose the style's later.
            assert not each.prod(dim=0).any() or (preset == "unziplora_released" and columns is not seen[1])
            assert all(row.sum() <= share * len(row) for row in each)
            if preset == "unziplora":
                assert all(row.sum() == int(0.25 * len(row)) for row in each)
    first, second, third = seen.values()
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert preset == "unziplora" or bool(((first <= second) & (second <= third)).all())


def fit_module(module: UnZipping, steps: int) -> None:
    fit(module, steps, module.model.device, "32-true")


def slope(tensor: Tensor) -> Tensor:
    """Return the gradient of a tensor that has one."""
    assert tensor.grad is not None
    return tensor.grad


def backward(module: UnZipping, step: int) -> None:
    """Run the forward and the backward pass of a step, without Lightning."""
    module.log = lambda *arguments, **options: None
    module.zero_grad()
    loss = module.training_step(step)
    loss.backward()
    module.loss = loss.detach()


def test_gradients_reach_what_should_learn(model: SDXL, job: UnZipJob) -> None:
    with trainee(model, job) as module:
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


def test_blocks_dedicated_to_one_adapter(model: SDXL) -> None:
    layers = model.layers.trained()
    content, style = (
        ["up_blocks.0.attentions.0", "up_blocks.0.attentions.2"],
        ["up_blocks.0.attentions.1", "up_blocks.1"],
    )
    found = dedicated(layers, "names", content, style, model.layers.modules)
    for name, (of_content, of_style) in found.items():
        block = ".".join(name.split(".")[:4])
        assert of_content == (block in content) and of_style == (
            block == content[0][:-1] + "1" or "up_blocks.1" in block
        )
    depth = dedicated(layers, "depth", content, style)
    assert all(depth[name] == (layer.depth > 0.5, layer.depth < 0.5) for name, layer in layers.items())
    assert set(dedicated(layers, "none", content, style).values()) == {(False, False)}
    with pytest.raises(
        UserError, match=r"method\.style_blocks=up_blocks\.7 has no layer to adapt; use method\.dedicated=depth"
    ):
        dedicated(layers, "names", content, ["up_blocks.7"], model.layers.modules)


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


def test_three_prompts_are_rows_of_their_own(model: SDXL, job: UnZipJob) -> None:
    """Sampling with separate prompts against a loop of two dense forwards per step."""
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


def test_dense_update_is_formed_only_where_columns_are_chosen(model: SDXL, lora_spec) -> None:
    with trainee(model, job_of(replace(lora_spec, steps=STEPS, batch=3))) as module:
        module.trainer = quiet_trainer(model.device, "32-true")
        seen = {}
        for step in (0, 1, 2):
            with NewMatrices(model.unet) as matrices:
                backward(module, step)
            with NewMatrices(model.unet) as later:
                module.on_after_backward()
            seen[step] = matrices.shapes, later.shapes
        dense = dense_shapes(model)
        assert not any(shapes & dense for shapes, _ in seen.values())
        assert seen[1][1] & dense and not seen[0][1] and not seen[2][1]


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


def test_whole_run_with_each_use(commands, tiny, tmp_path) -> None:
    pairs = ["dataset=microworld_stylised", "dataset.pairs=[mug_1/ink_1]", "dataset.scenes=1", "uses=[joint,content]"]
    result = commands.run(*tiny, *pairs, "method=unziplora", f"output={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "| unziplora |" in result.stdout and list(tmp_path.glob("*/*/report.html"))
