"""LoRAs that are trained for a pair: one for both concepts, and two from an image before and after styling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from conftest import CPU, reference
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils.parametrize import register_parametrization

from lorabench.base import UserError, seed_of
from lorabench.config.dataset_schemas import DatasetSpec, DreamBoothStyleDropSpec, MicroworldSpec
from lorabench.config.schemas import MergeSpec
from lorabench.data import microworld_pairs as world
from lorabench.data.catalogue import load_pairs
from lorabench.data.concepts import ROLES, Concept, Reference
from lorabench.data.pairs import Pair, joined
from lorabench.data.scenes import Prompts, Scene
from lorabench.engine.job import Make
from lorabench.engine.store import Store
from lorabench.lora.adapter import LoRA
from lorabench.models.files import ModelFiles
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.aligned import BASIS_SEED, AlignedLoRAs, train_aligned
from lorabench.personalization.initial import disjoint
from lorabench.personalization.phases import phase, updates
from lorabench.personalization.training import Environment
from lorabench.scoring.files import ScorerSet
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row
from lorabench.tasks.run_manifest import row_costs

WORLD = MicroworldSpec("microworld", ["mug_1", "cat_1"], ["ink_1", "ink_2"], None, 3, 2, 2)


@pytest.fixture
def concept(pair) -> Concept:
    return replace(
        pair.contents[0], styled=tuple(reference("mug", "a sks mug in szn style", c) for c in ("blue", "teal"))
    )


def plan_of(root: Path, lora_spec, generate_spec, name: str, dataset: DatasetSpec = WORLD) -> Plan:
    row = Row.of(*name.split())
    return Plan(
        store=Store(root), pairs=load_pairs(WORLD, Prompts()), rows=[row], dataset=dataset,
        model=ModelFiles(root / "model", root / "model"), model_name="micro", scorers=ScorerSet((), None),
        weights="w", scorers_digest="s", lora=lora_spec, generation=generate_spec, merging=MergeSpec(1),
        trainer=CPU, seed=3,
    )  # fmt: skip


def equal(left: LoRA, right: LoRA) -> bool:
    return all(torch.equal(left[s].up, right[s].up) and torch.equal(left[s].down, right[s].down) for s in left)


def test_one_concept_of_pair_shows_both_as_often() -> None:
    pair = load_pairs(WORLD, Prompts())[0]
    one = joined(pair)
    weights = {role: sum(i.weight for i in one.images if i in mine) for role, mine in images_by_role(pair, one).items()}
    assert weights == {"content": 6, "style": 6}
    assert [image.sha256 for image in one.images] == [i.sha256 for c in pair.concepts for i in c.images]


def images_by_role(pair: Pair, one: Concept) -> dict[str, list[Reference]]:
    hashes = {concept.role: {image.sha256 for image in concept.images} for concept in pair.concepts}
    return {role: [image for image in one.images if image.sha256 in mine] for role, mine in hashes.items()}


def blank() -> NoReturn:
    raise AssertionError("no image is loaded")


def test_joined_concept_has_each_image_once_even_for_coprime_counts() -> None:
    images = [Reference("mug", "a mug", f"{number}", blank) for number in range(997 + 1009)]
    content = Concept("mug", "content", "mug", tuple(images[:997]), ())
    style = Concept("ink", "style", "ink style", tuple(replace(image, weight=3) for image in images[997:]), ())
    one = joined(Pair((content,), (style,), Scene("", "")))
    assert len(one.images) == 997 + 1009
    assert sum(image.weight for image in one.images[:997]) == sum(image.weight for image in one.images[997:])


def test_joint_training_is_one_lora_pair_of_both_trainings_steps(tmp_path, lora_spec, generate_spec) -> None:
    plan = plan_of(tmp_path, lora_spec, generate_spec, "dreambooth_joint")
    items, [row] = plan.artifacts("personalize"), plan.rows
    assert [item.steps for item in items] == [6] * 4 and len({item.key for item in items}) == 4
    pair = plan.pairs[0]
    assert [lora.artifact.key for lora in plan.trained.loras(row, pair)] == [items[0].key]
    assert (
        plan.trained.adapted(row, pair).roles == ("content",) and plan.trained.adapted(row, pair).prompt == pair.prompt
    )
    assert plan.sample(row, pair).params["prompt"] == "a sks mug in szn style"


def test_training_for_one_pair_is_cost_of_its_merge(tmp_path, folder, lora_spec, generate_spec) -> None:
    both = "pair_customization keep_subject"
    for name, learned, passes in (("dreambooth_joint", ("down", "up"), 2 * 3 * 2), (both, ("up",), 10)):
        plan = plan_of(tmp_path, lora_spec, generate_spec, name)
        plan = replace(plan, model=ModelFiles(folder, folder), pairs=plan.pairs[:1])
        [row], [pair] = plan.rows, plan.pairs
        for stage in ("personalize", "merge"):
            for item in plan.artifacts(stage):
                Make(plan.store, (item,))(lambda done: None)
        costs = row_costs(plan, row)
        [trained] = {lora.artifact.key: plan.path(lora.artifact) for lora in plan.trained.loras(row, pair)}.values()
        loras = [LoRA.load(file) for file in trained.glob("*.safetensors")]  # sampling need not use all of them
        assert costs["learned_parameters"] == sum(lora.parameters(*learned) for lora in loras) > 0
        assert costs["merge_denoiser_passes"] == passes and "lora_seconds" not in costs


def test_aligned_pictures_differ_in_style_alone() -> None:
    pair = load_pairs(WORLD, Prompts())[0]
    found = world.aligned(pair.contents[0], pair.styles[0], 1, pair.prompt)
    [before], [after] = found.images, found.styled
    assert (before.prompt, after.prompt) == ("a sks mug", "a sks mug in szn style")
    assert before.sha256 == pair.contents[0].images[0].sha256
    photo, drawing = (np.asarray(each.load()) for each in (before, after))
    assert photo.shape == drawing.shape and not np.array_equal(photo, drawing)
    seed = seed_of("photo", "mug_1", 0)
    expected = world.render(pair.contents[0].factors, pair.styles[0].factors, seed)
    np.testing.assert_array_equal(drawing, np.asarray(expected))
    oracles = [np.asarray(world.oracle(pair, index)) for index in range(8)]
    assert not any(np.array_equal(drawing, oracle) for oracle in oracles)  # another pose is scored


def test_aligned_loras_are_of_couple(tmp_path, lora_spec, generate_spec) -> None:
    plan = plan_of(tmp_path, lora_spec, replace(generate_spec, guidance=5.0), "pair_customization keep_subject")
    row, pair = plan.rows[0], plan.pairs[0]
    content, style = plan.trained.loras(row, pair)
    assert content.artifact.key == style.artifact.key and content.key != style.key
    assert plan.trained.file(style).name == "style.safetensors" and content.artifact.steps == updates(lora_spec.steps)
    assert len(plan.artifacts("personalize")) == 4
    assert set(plan.sample(row, pair).params["prompts"]) == {"subject"}
    other = Row.of("pair_customization")  # without the content LoRA, which the same job trains
    [adapter] = plan.trained.loras(other, pair)
    assert adapter.key == style.key and set(plan.sample(other, pair).params["prompts"]) == {"plain", "styled"}
    several = load_pairs(replace(WORLD, subjects=["mug_1+cat_1"], styles=["ink_1+ink_2"]), Prompts())[0]
    loras = plan.trained.loras(row, several)
    assert [lora.name for lora in loras] == ["content", "content", "style", "style"]
    assert len({lora.artifact.key for lora in loras}) == 3  # the mug in either ink, the cat in the first


def test_photographs_have_no_aligned_pictures(tmp_path, lora_spec, generate_spec) -> None:
    photos = DreamBoothStyleDropSpec(name="dreambooth_styledrop")
    with pytest.raises(UserError, match=r"before and after styling.*use dataset=microworld"):
        plan_of(tmp_path, lora_spec, generate_spec, "pair_customization", photos).artifacts("personalize")
    for wrong in ({"prior_weight": 1.0}, {"text_encoders": True}):
        with pytest.raises(UserError, match=f"lora.{next(iter(wrong))}"):
            plan_of(tmp_path, replace(lora_spec, **wrong), generate_spec, "pair_customization").artifacts("personalize")


def test_bases_are_orthonormal_and_disjoint(model: SDXL) -> None:
    layers = model.layers.trained()
    content, style = disjoint(layers, 2, 7)
    for layer in layers:
        both = torch.cat([content[layer].down, style[layer].down])
        torch.testing.assert_close(both @ both.mT, torch.eye(4), atol=1e-5, rtol=0)
        assert not content[layer].up.any() and not style[layer].up.any()
    widths = {module.in_features: layer for layer, module in layers.items()}
    for layer, module in layers.items():
        assert torch.equal(content[layer].down, content[widths[module.in_features]].down)
    with pytest.raises(UserError, match=r"use lora\.rank=\d"):
        disjoint(layers, 33, 7)


def test_content_s_training_does_not_know_style(model: SDXL, concept: Concept, lora_spec) -> None:
    found = train_aligned(model, concept, replace(lora_spec, steps=6), Environment(0, CPU))
    other = replace(concept, styled=tuple(reference("mug", "a sks mug in szn style", c) for c in ("green", "gray")))
    also = train_aligned(model, other, replace(lora_spec, steps=6), Environment(0, CPU))
    assert equal(found["content"], also["content"]) and not equal(found["style"], also["style"])
    start = disjoint(model.layers.trained(), lora_spec.rank, BASIS_SEED)
    for role, begun in zip(ROLES, start, strict=True):
        for layer, factors in found[role].items():
            assert torch.equal(factors.down, begun[layer].down) and factors.up.any()


class Dense(nn.Module):
    """Return W + s (U_c D_c + U_s D_s) of one layer, with the scales `on`."""

    def __init__(self, downs: list[Tensor], out: int, scale: float):
        super().__init__()
        self.downs, self.scale, self.on = downs, scale, [1.0, 0.0]
        self.ups = nn.ParameterList(nn.Parameter(torch.zeros(out, len(down))) for down in downs)

    def forward(self, weight: Tensor) -> Tensor:
        parts = zip(self.on, self.ups, self.downs, strict=True)
        return weight + self.scale * sum((on * up @ down for on, up, down in parts), torch.zeros_like(weight))


def test_both_adapters_are_trained_as_two_dense_updates_by_two_optimisers(model, folder, concept, lora_spec) -> None:
    spec = replace(lora_spec, steps=5, warmup=0, max_grad_norm=1e9)
    found = train_aligned(model, concept, spec, Environment(0, CPU))
    plain = SDXL.load(folder)
    starts, layers = disjoint(plain.layers.trained(), spec.rank, BASIS_SEED), {}
    for layer, module in plain.layers.trained().items():
        layers[layer] = Dense([start[layer].down for start in starts], module.out_features, spec.alpha / spec.rank)
        register_parametrization(plain.unet.get_submodule(layer), "weight", layers[layer])
    adam = [
        torch.optim.AdamW(
            [each.ups[k] for each in layers.values()], spec.lr, spec.betas, weight_decay=spec.weight_decay
        )
        for k in range(2)
    ]
    from lorabench.models.autoencoder import pixels

    shots = [[image.image(plain.resolution) for image in images] for images in (concept.images, concept.styled)]
    latents = [plain.encode_images(pixels(images)) for images in shots]
    item = seed_of("aligned", [image.sha256 for image in concept.images], 0)
    for update in range(updates(spec.steps)):
        role, step = phase(update, spec.steps)
        k = ROLES.index(role)
        draw = torch.Generator().manual_seed(seed_of(item, step, 0))
        picks = torch.randint(2, (spec.batch,), generator=draw)
        t = torch.randint(1000, (spec.batch,), generator=draw)
        noise = torch.randn(spec.batch, *latents[0].shape[1:], generator=draw)
        for each in layers.values():
            each.on = [1.0, float(k)]
        words = plain.encode_prompts(["a sks mug in szn style" if k else "a sks mug"] * spec.batch)
        prediction = plain.predict(plain.process.add_noise(latents[k][picks], noise, t), t, words)
        adam[k].zero_grad()
        mse_loss(prediction, plain.process.target(latents[k][picks], noise, t)).backward()
        adam[k].step()
    for k, role in enumerate(ROLES):
        for layer, each in layers.items():
            torch.testing.assert_close(found[role][layer].up, each.scale * each.ups[k].detach(), atol=2e-4, rtol=1e-3)


def test_gradients_are_optimiser_s_before_they_are_unscaled(model, concept, lora_spec) -> None:
    """Repeat by hand the work of half precision on a GPU between the backward pass and the step."""
    starts = disjoint(model.layers.trained(), lora_spec.rank, BASIS_SEED)
    with model.attach(starts, dtype=torch.float32) as adapters:
        module = AlignedLoRAs(model, adapters, concept, lora_spec, 0)
        ups: Any = module.ups["content"]
        optimizer, scaler = torch.optim.SGD(module.factors, lr=0.0), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        grads = []
        for scale in (False, True):
            optimizer.zero_grad()
            module.role = "content"
            loss = module.loss("content", 0)
            (scaler.scale(loss) if scale else loss).backward()
            module.on_after_backward()
            if scale:
                scaler.unscale_(optimizer)
            grads.append([up.grad.clone() for up in ups])
        assert all(up.grad is None for up in module.ups["style"])
    for plain, unscaled in zip(*grads, strict=True):
        torch.testing.assert_close(unscaled, plain, atol=1e-6, rtol=1e-4)
    assert any(each.any() for each in grads[0])


def test_it_may_go_unclipped(model, concept, lora_spec) -> None:
    spec = replace(lora_spec, steps=2, max_grad_norm=None)
    free = train_aligned(model, concept, spec, Environment(0, CPU))
    assert equal(
        free["content"], train_aligned(model, concept, replace(spec, max_grad_norm=1e9), Environment(0, CPU))["content"]
    )


@pytest.mark.parametrize("killed", [2, 5])
def test_killed_aligned_training_goes_on(model, concept, lora_spec, tmp_path, killed) -> None:
    spec, trainer = replace(lora_spec, steps=5, accumulate=2), replace(CPU, checkpoint_every=1)
    whole = train_aligned(model, concept, spec, Environment(0, CPU))

    def stop(done: int) -> None:
        if done == killed:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_aligned(model, concept, spec, Environment(0, trainer, stop, scratch=tmp_path))
    assert list(tmp_path.iterdir())
    done: list[int] = []
    again = train_aligned(model, concept, spec, Environment(0, trainer, done.append, scratch=tmp_path))
    assert done[0] >= killed - 1 and all(equal(whole[role], again[role]) for role in ROLES)


@pytest.mark.parametrize(
    "method",
    [
        "qr_lora",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("dreambooth_joint", "pair_customization", "blora")),
    ],
)
def test_whole_run_of_loras_that_are_method_s_own(commands, tiny, tmp_path, method) -> None:
    """Run up to the report, because some of its parts count the LoRAs of a pair."""
    pair = ["dataset.subjects=[mug_1]", "dataset.styles=[ink_1]"]
    result = commands.run(*tiny, *pair, f"method={method}", f"output={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"| {method} |" in result.stdout and list(tmp_path.glob("*/*/report.html"))
