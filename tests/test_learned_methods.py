"""Learned merges: their terms and forward passes, initial and shared masks, and numbers of steps."""

from typing import Any

import pytest
import torch
from test_merge import merging, short

from lorabench.base import UserError
from lorabench.lora.layer import AllMasks, learned_params
from lorabench.merging.method import Method, load
from lorabench.models.layer import Layer

RECONSTRUCTION = {"content", "style"}
CYCLES = {"style_cycle", "content_cycle"}


def layer(depth: float, ranks: tuple[int, ...] = (8, 8), name: str = "a.layer") -> Layer:
    roles: Any = ("content",) * (len(ranks) - 1) + ("style",)
    return Layer(name, 4, 6, ranks, roles, depth)


def start(method: Method, *layers: Layer, seed: int = 0) -> AllMasks:
    merge: Any = method.merge
    named = {each.name: each for each in layers}
    merge.check(named)
    return merge.masks(named, seed)


def test_masks_only_is_ziprank(model, loras, pair) -> None:
    terms = []
    for method in (short("duolora", "masks_only"), short("ziprank")):
        module = merging(model, loras, pair, method)
        terms.append(module.loss(0))
        module.adapters.detach()
    assert terms[0].keys() == terms[1].keys() == {"content", "style"}
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


@pytest.mark.parametrize(
    ("name", "ablation", "terms", "forwards"),
    [
        ("ziplora", "none", RECONSTRUCTION | {"similarity"}, 2),
        ("ziplora", "no_similarity", RECONSTRUCTION, 2),
        ("ziprank", "none", RECONSTRUCTION, 2),
        ("duolora", "none", RECONSTRUCTION | CYCLES | {"prior"}, 3),
        ("duolora", "no_cycle", RECONSTRUCTION | {"prior"}, 2),
        ("duolora", "no_style_cycle", RECONSTRUCTION | {"content_cycle", "prior"}, 3),
        ("duolora", "no_content_cycle", RECONSTRUCTION | {"style_cycle", "prior"}, 3),
        ("duolora", "no_layer_prior", RECONSTRUCTION | CYCLES, 3),
        ("duolora", "ones_init", RECONSTRUCTION | CYCLES | {"prior"}, 3),
        ("duolora", "no_rank_constraint", RECONSTRUCTION | CYCLES, 3),
        ("duolora", "detached_cycle", RECONSTRUCTION | CYCLES | {"prior"}, 3),
        ("duolora_released", "none", RECONSTRUCTION | CYCLES | {"prior"}, 3),
    ],
)
def test_terms_and_forwards_of_step(model, loras, pair, name, ablation, terms, forwards) -> None:
    module = merging(model, loras, pair, short(name, ablation))
    count = []
    hook = model.unet.register_forward_hook(lambda *_: count.append(1))
    assert set(module.loss(0)) == terms and len(count) == forwards
    hook.remove()
    module.adapters.detach()


def test_duolora_starts_with_more_ones_in_dominant_mask() -> None:
    method = load("duolora", dominant_ones=0.75, minor_ones=0.25, lambda_prior=0.0)  # a layer may then be neutral
    for depth, ones in ((1.0, [6, 2]), (0.0, [2, 6]), (0.5, [8, 8])):
        [masks] = start(method, layer(depth), seed=1).values()
        assert [int(mask.only().sum()) for mask in masks] == ones
        assert all(set(mask.only().tolist()) <= {0.0, 1.0} for mask in masks)
        [again] = start(method, layer(depth), seed=1).values()
        assert all(torch.equal(left.only(), right.only()) for left, right in zip(masks, again, strict=True))
    [one], [other] = (start(method, layer(1.0), seed=seed).values() for seed in (1, 2))
    assert not torch.equal(one[0].only(), other[0].only())
    [masks] = start(load("duolora", "ones_init"), layer(1.0)).values()
    assert all((mask.only() == 1).all() for mask in masks)


def test_every_subject_has_share_of_its_role() -> None:
    [masks] = start(load("duolora", minor_ones=0.25), layer(0.0, (8, 4, 8))).values()
    assert [int(mask.only().sum()) for mask in masks] == [2, 1, 8]


def test_gaussian_start_of_released_code() -> None:
    """Kept values are r itself, the supports are nested, and about half and an eighth of the entries are kept."""
    method = load("duolora", "gaussian_init")
    layers = {f"layer{i}": layer(1.0, (64, 64), f"layer{i}") for i in range(200)}
    masks = start(method, *layers.values())
    content, style = (torch.stack([each[k].only() for each in masks.values()]) for k in (0, 1))
    assert content.max() == 1 and ((content == style) | (style == 0)).all()
    assert content[content > 0].min() > 0.5 and style[style > 0].min() > 0.75
    assert (content > 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (style > 0).float().mean() == pytest.approx(0.136, abs=0.03)
    [neutral] = start(load("duolora", "gaussian_init", lambda_prior=0.0), layer(0.5, (64, 64))).values()
    assert torch.equal(neutral[0].only(), neutral[1].only()) and neutral[0].only().min() == 0


def test_shared_masks_are_one_memory_that_moves_four_times() -> None:
    from lorabench.merging.learn import parameters

    block = "mid_block.attentions.0.transformer_blocks.0"
    names = [f"{block}.attn1.{each}" for each in ("to_q", "to_k", "to_v", "to_out.0")]
    other = f"{block}.attn2.to_q"
    masks = start(load("duolora", "shared_masks", init="ones"), *(layer(1.0, name=name) for name in (*names, other)))
    assert learned_params(masks) == 2 * 2 * 8
    learned, shared = parameters([masks], torch.device("cpu"))
    assert shared
    content = [learned[name][0].only() for name in names]
    optimizer = torch.optim.Adam(content, lr=0.01, foreach=False)
    for mask in content:
        mask.grad = torch.ones_like(mask)
    optimizer.step()
    assert all(torch.allclose(mask, torch.full_like(mask, 0.96), atol=1e-6) for mask in content)
    assert (learned[other][0].only() == 1).all()


def short_of(name: str) -> Any:
    return load(name).merge


def test_epoch_of_one_step() -> None:
    released, paper = (short_of(name) for name in ("duolora_released", "duolora"))
    assert [released.steps([n, 1]) for n in (1, 4, 5, 6)] == [100, 25, 20, 17]
    assert paper.steps([5, 1]) == 100


def test_content_lora_of_released_scripts_is_short(pair, lora_spec) -> None:
    def steps(name: str) -> list[int]:
        return [output.job.steps for output in load(name).training.outputs(pair, lora_spec)]

    assert steps("duolora_released") == [1, 3] and steps("duolora") == steps("direct") == [3, 3]
    [content, style], [same, too] = (load(name).training.outputs(pair, lora_spec) for name in ("duolora", "direct"))
    assert (content.job, style.job) == (same.job, too.job)


def test_zip_masks_have_size_of_papers_dimension() -> None:
    def sizes(method: Method) -> list[tuple[int, ...]]:
        [masks] = start(method, layer(0.0, (3, 2))).values()
        return [tuple(mask.only().shape) for mask in masks]

    assert sizes(load("ziplora")) == [(4,), (4,)]
    assert sizes(load("ziplora", mask_dim="out")) == [(6,), (6,)]
    assert sizes(load("ziprank")) == [(3,), (2,)]


def test_prior_needs_layer_that_it_is_about() -> None:
    with pytest.raises(UserError, match="use ablation=no_layer_prior"):
        start(load("duolora"), layer(0.5))
    assert start(load("duolora", "no_layer_prior"), layer(0.5))
