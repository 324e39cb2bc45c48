"""Merging: only masks have gradients, rows are independent, and results can be written and read."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import random_lora
from merges import merge_all, merged, ranks_of

from lorabench.base import UserError
from lorabench.data.pairs import Pair
from lorabench.data.pairs import pair as make_pair
from lorabench.data.scenes import Prompts
from lorabench.lora.adapter import LoRA, in_basis
from lorabench.merging.draws import Draws
from lorabench.merging.learn import Merging
from lorabench.merging.merge import Merged, MergeItem
from lorabench.merging.method import Method, load
from lorabench.merging.step import MergeStep

SHORT = {"steps": 2, "lr": 0.01, "batch": 2}


def short(name: str, ablation: str = "none", **overrides: Any) -> Any:
    return load(name, ablation, fit=SHORT, **overrides)


def merging(model, loras, pair: Pair, method: Method, seed: int = 0) -> Merging:
    merge: Any = method.merge
    rebased = in_basis(loras, merge.basis)
    layers = model.layers.adapted(rebased, pair.roles)
    start = merge.masks(layers, seed)
    return Merging(model.attach(rebased), layers, merge, [start], [pair], [Draws(model, pair, seed)])


def recolored(pair: Pair, name: str) -> Pair:
    """Return another pair of the same shape."""
    content = replace(pair.contents[0], name=name, images=pair.styles[0].images)
    return replace(pair, contents=(content,))


@pytest.fixture
def trio(pair: Pair) -> Pair:
    """Return two subjects in one style."""
    cat = replace(pair.contents[0], name="cat_1", word="cat", images=pair.contents[0].images[:1])
    return make_pair((pair.contents[0], cat), pair.styles, Prompts())


@pytest.fixture
def three(model, loras) -> tuple[LoRA, ...]:
    return loras[0], random_lora(model, 4, "cat"), loras[1]


def test_gradients_reach_masks_and_nothing_else(model, loras, pair) -> None:
    for name in ("ziplora", "ziprank", "duolora"):
        module = merging(model, loras, pair, short(name))
        module.loss(0)["style"].sum().backward()
        assert all(mask.grad is not None and mask.grad.abs().sum() > 0 for mask in module.learned)
        parameters = list(model.unet.parameters())
        assert len(parameters) > 0 and all(parameter.grad is None for parameter in parameters)
        module.adapters.detach()


def test_masks_of_switched_off_adapters_get_no_gradient(model, loras, pair) -> None:
    module = merging(model, loras, pair, short("duolora"))
    step = module.draw(0)
    rows = torch.tensor([[1.0, 0.0]] * len(step.t))
    module.adapters.rows(rows, masked=True)
    model.predict(step.images[0].x, step.t, step.images[0].prompt).square().sum().backward()
    for content, style in module.masks.values():
        used, unused = content.only().grad, style.only().grad
        assert used is not None and unused is not None
        assert used.abs().sum() > 0 and not unused.any()
    module.adapters.detach()
    for predictions in (step.teachers(), step.unmasked(step.images, [(0,), (1,)])):
        assert not any(prediction.requires_grad for prediction in predictions)


def test_teachers_are_each_lora_alone(model, loras, pair) -> None:
    module = merging(model, loras, pair, short("duolora"))
    step: MergeStep = module.draw(0)
    e_c, e_s = step.teachers()
    module.adapters.detach()
    for lora, noised, expected in ((loras[0], step.images[0], e_c), (loras[1], step.images[1], e_s)):
        with model.attach([lora]):
            torch.testing.assert_close(model.predict(noised.x, step.t, noised.prompt), expected, rtol=1e-4, atol=1e-5)


def test_predictions_do_not_depend_on_what_shares_forward(model, loras, pair) -> None:
    module = merging(model, loras, pair, short("duolora"))
    step = module.draw(0)
    inputs = (*step.images, step.images[0].under(step.both))
    together = step.merged(*inputs)
    for left, noised in zip(together, inputs, strict=True):
        torch.testing.assert_close(left, step.merged(noised)[0], rtol=1e-5, atol=1e-5)
    for scales in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        module.adapters.rows(torch.tensor([scales]), masked=False)
        first = model.predict(step.images[0].x[:1], step.t[:1], step.images[0].prompt.take([0]))
        both = model.predict(step.images[0].x, step.t, step.images[0].prompt)
        torch.testing.assert_close(first, both[:1], rtol=1e-5, atol=1e-5)
    module.adapters.detach()


def test_content_and_style_share_noise_and_timestep(model, loras, pair) -> None:
    module = merging(model, loras, pair, short("ziplora"))
    step = module.draw(3)
    module.adapters.detach()
    alpha_bar = model.process.alphas_bar[step.t].view(-1, 1, 1, 1)
    for noised, images in zip(step.images, module.draws[0].concepts, strict=True):
        for row in (noised.x - (1 - alpha_bar).sqrt() * step.noise) / alpha_bar.sqrt():
            assert min(float((row - image).abs().max()) for image in images.latents) < 1e-2


def test_merge_leaves_model_and_loras_alone_and_is_repeatable(model, loras, pair) -> None:
    weights = {name: value.clone() for name, value in model.unet.state_dict().items()}
    factors = [{layer: each.up.clone() for layer, each in lora.items()} for lora in loras]
    done: list[int] = []
    result = merged(model, short("duolora"), loras, pair, progress=done.append)
    assert done == [1, 2]
    assert set(result.losses) == {"content", "style", "style_cycle", "content_cycle", "prior"}
    assert all(len(values) == 2 for values in result.losses.values())
    assert result.learned_params == len(loras[0]) * 5
    assert all(torch.equal(value, weights[name]) for name, value in model.unet.state_dict().items())
    for lora, before in zip(loras, factors, strict=True):
        assert all(torch.equal(lora[layer].up, before[layer]) for layer in before)
    merged(model, short("ziplora"), loras, pair)  # another item in between changes nothing
    again = merged(model, short("duolora"), loras, pair)
    assert again.losses == result.losses
    assert merged(model, short("duolora"), loras, pair, 1).losses != result.losses


@pytest.mark.parametrize("name", ["ziplora", "ziprank", "duolora", "duolora_released"])
def test_pairs_side_by_side_are_pairs_one_by_one(model, loras, pair, name) -> None:
    """They stay equal, whatever else is in the batch."""
    method = short(name)
    others = [random_lora(model, 3, "other"), random_lora(model, 2, "look")]
    items = [MergeItem(tuple(loras), pair), MergeItem(tuple(others), recolored(pair, "cup_1"))]
    separate = [merge_all(model, method, [item])[0] for item in items]
    together = merge_all(model, method, items)
    turned = merge_all(model, method, items[::-1])[::-1]
    for one, *batched in zip(separate, together, turned, strict=True):
        for result in batched:
            assert result.learned_params == one.learned_params and result.losses.keys() == one.losses.keys()
            for term in one.losses:
                torch.testing.assert_close(
                    torch.tensor(result.losses[term]), torch.tensor(one.losses[term]), rtol=1e-4, atol=1e-6
                )
            for layer in one.file:
                left, right = (each.file[layer].up @ each.file[layer].down for each in (result, one))
                torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_loras_of_other_shapes_get_batch_of_their_own(model, loras, pair) -> None:
    method = short("ziprank")
    wide = (random_lora(model, 5, "other"), loras[1])
    items = [MergeItem(tuple(loras), pair), MergeItem(wide, pair), MergeItem(tuple(loras), recolored(pair, "cup_1"))]
    done: list[int] = []
    results = merge_all(model, method, items, progress=done.append)
    assert [result.file.rank for result in results] == [5, 7, 5] and done == [2, 4, 5, 6]


def test_three_adapters_are_one_merge(model, three, trio) -> None:
    for name in ("direct", "ziplora", "duolora", "duolora_released"):
        result = merged(model, short(name) if name != "direct" else load(name), three, trio)
        assert result.file.rank == 3 + 4 + 2
    assert result.learned_params == len({layer.rpartition(".attn")[0] for layer in three[0]}) * 2 * 9


def test_uniform_is_mean_of_merges_of_each_content_with_style(model, three, trio) -> None:
    for name in ("direct", "ziplora", "duolora"):
        method = short(name, "uniform") if name != "direct" else load(name, "uniform")
        result = merged(model, method, three, trio)
        loras = [(three[0], three[2]), (three[1], three[2])]
        parts = [merged(model, method, pick, couple) for pick, couple in zip(loras, trio.couples, strict=True)]
        for layer in three[0]:
            dense = sum(part.file[layer].up @ part.file[layer].down for part in parts) / 2
            torch.testing.assert_close(result.file[layer].up @ result.file[layer].down, dense, rtol=1e-4, atol=1e-5)


def test_uniform_copes_with_layer_that_one_subject_alone_adapts(model, three, trio) -> None:
    bare = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    without = [LoRA({layer: each for layer, each in lora.items() if layer != bare}) for lora in (three[0], three[2])]
    method, picked = short("ziplora", "uniform"), (without[0], three[1], without[1])
    result = merged(model, method, picked, trio)
    ranks = ranks_of(method, result, picked, trio)[bare]
    assert result.file[bare].rank == 4 and [rank > 0 for rank in ranks] == [False, True, False]


@pytest.mark.parametrize("name", ["ssr_merge", "np_lora"])
def test_there_is_no_mean_of_merges_without_masks(name) -> None:
    with pytest.raises(UserError, match=f"ablation=uniform changes settings that {name} does not have"):
        load(name, "uniform")


def test_adapter_that_lacks_layer_leaves_it_alone(model, loras, pair) -> None:
    half = LoRA({layer: each for i, (layer, each) in enumerate(loras[0].items()) if i % 2})
    method = short("ziprank")
    result = merged(model, method, (half, loras[1]), pair)
    ranks = ranks_of(method, result, (half, loras[1]), pair)
    bare = next(layer for layer in loras[0] if layer not in half)
    assert result.file[bare].rank == 2 and ranks[bare][0] == 0 and set(result.file) == set(loras[0])


def test_pair_stops_by_itself(model, loras, pair) -> None:
    few = recolored(pair, "cup_1")
    few = replace(few, contents=(replace(few.contents[0], images=pair.contents[0].images * 2),))
    method = load("duolora", "early_stop", fit={"steps": 4, "lr": 0.01, "batch": 1})
    items = [MergeItem(tuple(loras), pair), MergeItem(tuple(loras), few)]
    results = merge_all(model, method, items)
    assert [len(result.losses["content"]) for result in results] == [2, 1]
    again = merge_all(model, method, items[1:])[0]
    torch.testing.assert_close(torch.tensor(again.losses["content"]), torch.tensor(results[1].losses["content"]))
    stopped = merged(model, load("ziplora", fit={"steps": 5, "lr": 0.01, "batch": 1}, stop_at=1.0), loras, pair)
    assert len(stopped.losses["content"]) == 1


def test_result_comes_back_from_disk(model, loras, pair, tmp_path) -> None:
    for name in ("direct", "ziplora", "duolora", "duolora_released"):
        result = merged(model, short(name) if name != "direct" else load(name), loras, pair)
        folder = tmp_path / name
        folder.mkdir()
        result.save(folder)
        loaded = Merged.load(folder)
        assert loaded.losses == result.losses and loaded.learned_params == result.learned_params
        assert loaded.ranks == result.ranks
        assert (loaded.masks is None) == (result.masks is None) == (name == "direct")
        for layer in result.file:
            assert torch.equal(loaded.file[layer].down, result.file[layer].down)
            if result.masks is not None and loaded.masks is not None:
                for left, right in zip(loaded.masks[layer], result.masks[layer], strict=True):
                    assert left.named().keys() == right.named().keys()
                    assert all(torch.equal(left.named()[kind], mask) for kind, mask in right.named().items())


def test_merged_lora_is_live_merge(model, loras, pair) -> None:
    method = short("duolora")
    result = merged(model, method, loras, pair)
    sample, t = torch.randn(1, model.unet.config.in_channels, 16, 16), torch.tensor([500])
    prompt = model.encode_prompts([pair.prompt])
    with model.attach(in_basis(loras, method.merge.basis), result.masks):
        live = model.predict(sample, t, prompt)
    with model.attach([result.file]):
        torch.testing.assert_close(model.predict(sample, t, prompt), live, rtol=1e-5, atol=1e-5)


def test_direct_merge_is_sum(model, loras, pair) -> None:
    result = merged(model, load("direct"), loras, pair)
    assert result.masks is None and result.learned_params == 0 and result.losses == {}
    for layer, each in result.file.items():
        total = sum(lora[layer].up @ lora[layer].down for lora in loras)
        torch.testing.assert_close(each.up @ each.down, total)
