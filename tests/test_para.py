"""PaRa: bases learned on the images of a concept, and their merge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import CPU
from merges import merged

from lorabench.base import UserError
from lorabench.lora.projection import joined_reduction
from lorabench.merging.method import load
from lorabench.personalization.dreambooth import denoised
from lorabench.personalization.rank_reduction import learn_bases, start
from lorabench.personalization.training import Environment
from lorabench.personalization.views import views


def loss_of(model, images, prompts: int = 8) -> float:
    draw = torch.Generator().manual_seed(5)
    batch = views(model, images, False, 0, 0).draw(model, prompts, draw)
    with torch.no_grad():
        prediction, target = denoised(model, batch, model.encode_prompts(batch.prompts))
    return float((prediction - target).square().mean())


@pytest.fixture
def spec(lora_spec):
    return replace(lora_spec, steps=6, lr=2e-2, batch=4, warmup=0)


@pytest.mark.parametrize("init", ["random", "bottom_svd"])
def test_training_lowers_loss_of_its_images(model, pair, spec, init: str) -> None:
    images, ranks = pair.contents[0].images, dict.fromkeys(model.layers.trained(), 2)
    [trained] = learn_bases(model, [images], ranks, init, spec, 0, Environment(0, CPU))
    [again] = learn_bases(model, [images], ranks, init, spec, 0, Environment(0, CPU))
    [untrained] = learn_bases(model, [images], ranks, init, replace(spec, steps=1, lr=1e-9), 0, Environment(0, CPU))
    losses = []
    for adapter in (trained, untrained):
        with model.changed(adapter):
            losses.append(loss_of(model, images))
    assert losses[0] < losses[1]
    assert all(torch.equal(each.up, again[layer].up) for layer, each in trained.items())
    q = next(iter(trained.values())).up
    torch.testing.assert_close(q.mT @ q, torch.eye(2), rtol=1e-5, atol=1e-5)


def test_bases_learn_from_their_own_images_only(model, pair, spec) -> None:
    content, style = pair.contents[0].images, pair.styles[0].images
    ranks = dict.fromkeys(list(model.layers.trained())[:6], 2)
    spec = replace(spec, max_grad_norm=None)
    first = learn_bases(model, [content, style], ranks, "random", spec, 0, Environment(0, CPU))
    other = learn_bases(model, [content, content], ranks, "random", spec, 0, Environment(0, CPU))
    # the draws of the second source change nothing of the first
    assert all(torch.equal(each.up, other[0][layer].up) for layer, each in first[0].items())
    assert any(not torch.equal(each.up, other[1][layer].up) for layer, each in first[1].items())


def test_bottom_start_removes_less_than_random_start(model) -> None:
    ranks = dict.fromkeys(model.layers.trained(), 2)
    removed = {}
    for init in ("random", "bottom_svd"):
        shares = []
        for name, basis in start(model, ranks, init, 0).items():
            weight = model.denoiser.get_submodule(name).weight
            q = torch.linalg.qr(basis).Q
            shares.append(float((q.mT @ weight).norm() / weight.norm()))
        removed[init] = sum(shares) / len(shares)
    assert removed["bottom_svd"] < 0.5 * removed["random"]


def test_sources_start_from_different_smallest_directions(model) -> None:
    """Equal starts would make the merge of both span the differences that training makes."""
    ranks = dict.fromkeys(model.layers.trained(), 2)
    both = start(model, dict.fromkeys(ranks, 4), "bottom_svd", 0)
    first, second = (start(model, ranks, "bottom_svd", 0, source, 2) for source in range(2))
    for name, basis in both.items():
        joined = torch.cat([first[name], second[name]], dim=1)
        torch.testing.assert_close(joined @ joined.mT, basis @ basis.mT, rtol=1e-4, atol=1e-5)


def test_rank_of_whole_layer_is_refused(model) -> None:
    name = next(iter(model.layers.trained()))
    width = model.layers[name].out_features
    with pytest.raises(UserError, match=f"leaves nothing of {name}; use a rank of at most {width - 1}"):
        start(model, {name: width}, "random", 0)


def test_method_merges_common_basis(model, pair, lora_spec) -> None:
    method = load("para")
    jobs = [output.job for output in method.training.outputs(pair, replace(lora_spec, steps=1))]
    loras = [job.run(model, Environment(0, CPU))["lora"] for job in jobs]
    result = merged(model, method, loras, pair)
    name = next(iter(result.file))
    expected = joined_reduction([lora[name] for lora in loras])
    torch.testing.assert_close(result.file[name].up @ result.file[name].down, expected.up @ expected.down)
    weight = model.denoiser.get_submodule(name).weight + result.file[name].up @ result.file[name].down
    assert all((lora[name].up.mT @ weight).abs().max() < 1e-4 for lora in loras)
    assert jobs[0].learned(loras[0]) == sum(each.up.numel() for each in loras[0].values())


def test_merge_of_other_trainings_is_refused() -> None:
    with pytest.raises(UserError, match="method/merge=para merges what method/training=para learns"):
        load("direct+merge.para")


def test_recipe_with_text_encoders_is_refused(pair, lora_spec) -> None:
    with pytest.raises(
        UserError, match=r"lora.text_encoders=True is not a setting of method/training=para; leave it out"
    ):
        load("para").training.outputs(pair, replace(lora_spec, text_encoders=True))
