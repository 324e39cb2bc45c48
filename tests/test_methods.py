"""Every method: its files, its ablations, what its masks start from, and how many passes a step takes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CPU, random_lora
from omegaconf import OmegaConf
from test_merge import merging, short

from lorabench.base import CONF, UserError
from lorabench.lora.layer import AllMasks, learned_params
from lorabench.merging.merge import MergeItem, merge_all
from lorabench.merging.method import Method, build, fitting_methods, load, methods
from lorabench.merging.methods.peft_linear import APART, DENSE
from lorabench.models.layer import Layer

YAMLS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


def layer(depth: float, ranks: tuple[int, ...] = (8, 8), name: str = "a.layer") -> Layer:
    roles: Any = ("content",) * (len(ranks) - 1) + ("style",)
    return Layer(name, 4, 6, ranks, roles, depth)


def start(method: Method, *layers: Layer, seed: int = 0) -> AllMasks:
    masks = method.masks({each.name: each for each in layers}, seed)
    assert masks is not None
    return masks


def test_every_method_has_its_yaml() -> None:
    yamls: dict[str, Any] = {name: OmegaConf.load(CONF / "method" / f"{name}.yaml") for name in YAMLS}
    assert {values.name for values in yamls.values()} == set(methods()) and set(methods()) <= set(YAMLS)
    assert all(f"schema/{values.name}" in values.defaults for values in yamls.values())
    assert all(load(name).name == values.name for name, values in yamls.items())


def test_every_ablation_changes_little_and_fits_something() -> None:
    for path in (CONF / "ablation").glob("*.yaml"):
        keys = set(OmegaConf.load(path))
        assert path.read_text().startswith("# @package method\n")
        assert path.stem == "released" or (len(keys) <= 3 and (path.stem == "none") == (not keys))
        assert fitting_methods(path.stem)


def test_an_ablation_of_another_method_does_not_fit() -> None:
    assert fitting_methods("no_cycle") == ["duolora", "duolora_released"]
    assert fitting_methods("none") == YAMLS
    with pytest.raises(UserError, match="no_cycle fits method=duolora"):
        load("ziplora", "no_cycle")
    with pytest.raises(UserError, match="no method is called"):
        load("ziplore")
    with pytest.raises(UserError, match="no ablation is called"):
        load("duolora", "no_circle")


def test_a_method_is_built_from_plain_values_too() -> None:
    for name in YAMLS:
        method = load(name)
        values: Any = OmegaConf.to_container(OmegaConf.structured(method))
        assert build(values) == build({**values, "paper": [{"arxiv": "0"}]}) == method  # as old run folders have it


# Ablations of duolora that each make one difference between the paper and the released code.
DEPARTURES = (
    "released_blocks", "vector_nuclear_norm", "no_hinge", "cycle_adapters", "detached_cycle", "shared_masks",
    "early_stop", "swapped_lambdas", "ones_init", "short_content_lora", "raw_basis", "summed_prior",
)  # fmt: skip


def test_the_released_preset_is_all_departures_at_once() -> None:
    switched, preset = load("duolora", "released"), load("duolora_released")
    assert switched == preset
    paper = vars(load("duolora"))
    alone = [vars(load("duolora", ablation)) for ablation in DEPARTURES]
    changed = {key: each[key] for each in alone for key in each if each[key] != paper[key]}
    assert changed == {key: value for key, value in vars(preset).items() if value != paper[key]}


def test_masks_only_is_ziprank(model, loras, pair) -> None:
    terms = []
    for method in (short("duolora", "masks_only"), short("ziprank")):
        module = merging(model, loras, pair, method)
        terms.append(module.loss(0))
        module.adapters.detach()
    assert terms[0].keys() == terms[1].keys() == {"content", "style"}
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


RECONSTRUCTION = {"content", "style"}
CYCLES = {"style_cycle", "content_cycle"}


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
def test_terms_and_forwards_of_a_step(model, loras, pair, name, ablation, terms, forwards) -> None:
    module = merging(model, loras, pair, short(name, ablation))
    count = []
    hook = model.unet.register_forward_hook(lambda *_: count.append(1))
    assert set(module.loss(0)) == terms and len(count) == forwards
    hook.remove()
    module.adapters.detach()


def test_duolora_starts_with_more_ones_in_the_dominant_mask() -> None:
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


def test_every_subject_has_the_share_of_its_role() -> None:
    [masks] = start(load("duolora", minor_ones=0.25), layer(0.0, (8, 4, 8))).values()
    assert [int(mask.only().sum()) for mask in masks] == [2, 1, 8]


def test_the_gaussian_start_of_the_released_code() -> None:
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
    optimiser = torch.optim.Adam(content, lr=0.01, foreach=False)
    for mask in content:
        mask.grad = torch.ones_like(mask)
    optimiser.step()
    assert all(torch.allclose(mask, torch.full_like(mask, 0.96), atol=1e-6) for mask in content)
    assert (learned[other][0].only() == 1).all()


def test_an_epoch_of_one_step() -> None:
    released, paper = load("duolora_released"), load("duolora")
    assert [released.steps([n, 1]) for n in (1, 4, 5, 6)] == [100, 25, 20, 17]
    assert paper.steps([5, 1]) == 100


def test_the_content_lora_of_the_released_scripts_is_short(lora_spec) -> None:
    released, paper = load("duolora_released"), load("duolora")
    assert (released.lora("content", lora_spec).steps, released.lora("style", lora_spec).steps) == (1, 3)
    assert paper.lora("content", lora_spec) == lora_spec


def test_zip_masks_have_the_size_of_the_papers_dimension() -> None:
    def sizes(method: Method) -> list[tuple[int, ...]]:
        [masks] = start(method, layer(0.0, (3, 2))).values()
        return [tuple(mask.only().shape) for mask in masks]

    assert sizes(load("ziplora")) == [(4,), (4,)]
    assert sizes(load("ziplora", mask_dim="out")) == [(6,), (6,)]
    assert sizes(load("ziprank")) == [(3,), (2,)]


def test_a_prior_needs_a_layer_that_it_is_about() -> None:
    with pytest.raises(UserError, match="type ablation=no_layer_prior"):
        start(load("duolora"), layer(0.5))
    assert start(load("duolora", "no_layer_prior"), layer(0.5))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="mask_dim=rows"):
        load("ziplora", mask_dim="rows")
    with pytest.raises(UserError, match="minor_ones=2"):
        load("duolora", minor_ones=2.0)
    with pytest.raises(UserError, match="constyle=attached is unknown, did you mean detached"):
        load("duolora", constyle="attached")
    with pytest.raises(UserError, match="basis=qr"):
        load("ziprank", basis="qr")


CELLS = [(name, "none") for name in YAMLS] + [
    (fitting_methods(path.stem)[0], path.stem)
    for path in sorted((CONF / "ablation").glob("*.yaml"))
    if path.stem not in ("none", "uniform")  # uniform concerns several subjects: see test_merge.py
]


@pytest.mark.parametrize(("name", "ablation"), CELLS)
def test_every_method_and_ablation_merges(model, loras, pair, hypernetwork, name, ablation) -> None:
    method = load(name, ablation, **({"weights": str(hypernetwork)} if name == "lora_rar" else {}))
    if method.fit is not None:
        method = replace(method, fit=replace(method.fit, steps=1))
    if getattr(method, "combination", "cat") in APART:
        loras = [random_lora(model, 3, "content"), random_lora(model, 3, "style")]
    [result] = merge_all(model, method, [MergeItem(tuple(loras), pair)], 0, CPU)
    greatest = name == "svd" or getattr(method, "combination", "cat") in (*APART, *DENSE)
    if name == "base":
        assert not result.lora
    elif name == "blora":
        assert {layer[:24] for layer in result.lora} == {"up_blocks.0.attentions.0", "up_blocks.0.attentions.1"}
        assert {each.rank for each in result.lora.values()} == {2, 3}
    else:
        alone = {"content_only": 3, "style_only": 2, "styledrop": 2, "pair_customization": 2}
        rank = 3 if greatest else alone.get(name, 5) if ablation != "keep_subject" else 5
        assert set(result.lora) == set(loras[0]) and result.lora.rank == rank
    assert all(torch.isfinite(each.up).all() and torch.isfinite(each.down).all() for each in result.lora.values())
    assert (result.learned_params > 0) == (result.masks is not None)
    assert all(0 <= rank <= 3.001 for ranks in result.ranks.values() for rank in ranks)
