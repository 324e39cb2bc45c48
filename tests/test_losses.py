"""Every term of every learned merge, and its gradient, against the formula with dense updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import random_lora
from dense import Dense, mse
from test_merge import merging, recolored, short, three, trio  # noqa: F401 (fixtures)
from torch.nn.functional import cosine_similarity

from lorabench.merging.method import load

Terms = dict[str, torch.Tensor]


def reconstruction(dense: Dense, step) -> Terms:
    terms: Terms = {}
    for k, (role, noised) in enumerate(zip(step.roles, step.images, strict=True)):
        with torch.no_grad():
            teacher = dense.predict(noised, on=(k,))
        terms[role] = terms.get(role, torch.zeros(())) + mse(dense.predict(noised, merged=True), teacher)
    return terms


def ziplora(dense: Dense, step, overlap: Callable = lambda a, b: (a * b).abs().mean(), summed: bool = False) -> Terms:
    """Return eq. 3 of the paper."""
    layers = [overlap(*masks) for masks in dense.leaves.values()]
    total: Any = sum(layers)
    return reconstruction(dense, step) | {"similarity": 0.01 * total / (1 if summed else len(layers))}


def low_resolution(layer: str) -> bool:
    return layer.split(".attentions")[0] in ("down_blocks.2", "mid_block", "up_blocks.0")


def paper_prior(dense: Dense, step) -> torch.Tensor:
    """Return ||m_dom||_1 + max(0, ||m_minor||_* - ||m_dom||_*) per layer; norms are means over a role's adapters."""
    layers = []
    for layer, masks in dense.leaves.items():
        dominant = "content" if low_resolution(layer) else "style"
        norms = {"content": [], "style": []}
        for role, m in zip(step.roles, masks, strict=True):
            norms[role].append(torch.linalg.matrix_norm(m.diag(), "nuc"))
        at: dict[str, Any] = {role: sum(each) / len(each) for role, each in norms.items()}
        minor = {"content": "style", "style": "content"}[dominant]
        layers.append((at[dominant] + torch.clamp(at[minor] - at[dominant], min=0)) / max(len(m) for m in masks))
    return torch.stack(layers).mean()


def add_paper_cycles(dense: Dense, step, terms: Terms, in_image: bool = False) -> Terms:
    for k, (role, noised) in enumerate(zip(step.roles, step.images, strict=True)):
        added = dense.predict(noised.under(step.both), merged=True)
        there = dense.renoised(noised, added, step.noise, noised.prompt)
        back = dense.predict(there, on=(k,))
        with torch.no_grad():
            start = dense.predict(noised, on=(k,))
        if in_image:
            vae = dense.model.vae
            start, back = (
                (vae.decode(dense.clean(at.x, v) / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
                for at, v in ((noised, start), (there, back))
            )
        name = {"content": "style_cycle", "style": "content_cycle"}[role]
        terms[name] = terms.get(name, torch.zeros(())) + 0.01 * mse(back, start)
    return terms


def duolora(dense: Dense, step, in_image: bool = False) -> Terms:
    terms = add_paper_cycles(dense, step, reconstruction(dense, step), in_image)
    return terms | {"prior": 0.1 * paper_prior(dense, step)}


def released(dense: Dense, step) -> Terms:
    """Return L1, L2, L4, L5, L6 of the released code with the weights of its scripts."""
    terms = reconstruction(dense, step)
    content, style = step.images
    with torch.no_grad():
        e_cs, e_sc = (
            dense.predict(content.under(step.both), on=(1,)),
            dense.predict(style.under(step.both), on=(0,)),
        )
        e_csc = dense.predict(dense.renoised(content, e_cs, step.noise, content.prompt), on=(1,))
        e_scs = dense.predict(dense.renoised(style, e_sc, step.noise, style.prompt), on=(0,))
    terms["style_cycle"] = 0.1 * mse(dense.predict(content, merged=True), e_csc)
    terms["content_cycle"] = 0.1 * mse(dense.predict(style, merged=True), e_scs)
    layers = []
    for layer, (m_1, m_2) in dense.leaves.items():
        if layer.startswith("down_blocks.2."):
            layers.append((m_2.square().sum().sqrt() - m_1.square().sum().sqrt()) + m_1.abs().sum())
        elif layer.startswith(("down_blocks.1.", "up_blocks.1.")):
            layers.append((m_1.square().sum().sqrt() - m_2.square().sum().sqrt()) + m_2.abs().sum())
    terms["prior"] = 0.01 * torch.stack(layers).mean()
    return terms


def cosine(a, b):
    return cosine_similarity(a, b, dim=0).abs()


CASES: list[tuple[str, str, dict[str, Any], Callable[..., Terms]]] = [
    ("ziplora", "none", {}, ziplora),
    ("ziplora", "output_masks", {}, ziplora),
    ("ziplora", "cosine_similarity", {}, lambda dense, step: ziplora(dense, step, cosine)),
    ("ziplora", "summed_similarity", {}, lambda dense, step: ziplora(dense, step, summed=True)),
    ("ziplora", "no_similarity", {}, reconstruction),
    ("ziplora_mkshing", "none", {}, lambda dense, step: ziplora(dense, step, summed=True)),
    ("ziprank", "none", {}, reconstruction),
    ("ziprank", "raw_basis", {}, reconstruction),
    ("duolora", "none", {}, duolora),
    ("duolora", "image_cycle", {}, lambda dense, step: duolora(dense, step, in_image=True)),
    ("duolora_released", "none", {"shared_masks": False}, released),
    ("duolora", "masks_only", {}, reconstruction),
]


@pytest.mark.parametrize(("name", "ablation", "overrides", "expected"), CASES)
def test_every_term_and_its_gradient_equal_dense_formula(model, loras, pair, name, ablation, overrides, expected):
    check(model, loras, pair, load(name, ablation, fit={"steps": 1, "lr": 0.01, "batch": 2}, **overrides), expected)


def test_terms_of_two_subjects_and_style(model, three, trio) -> None:  # noqa: F811
    for name, expected in (("ziprank", reconstruction), ("duolora", duolora)):
        check(model, three, trio, short(name), expected)


def check(model, loras, pair, method, expected) -> None:
    module = merging(model, loras, pair, method)
    torch.manual_seed(0)
    with torch.no_grad():
        for mask in module.learned:
            mask.copy_(torch.randn_like(mask))  # away from ones, with both signs
    step = module.draw(0)
    ours = module.loss(0)
    torch.stack(list(ours.values())).sum().backward()
    dense = Dense(module, loras, method.merge.basis)
    theirs = expected(dense, step)
    torch.stack(list(theirs.values())).sum().backward()
    assert ours.keys() == theirs.keys()
    for term in ours:
        torch.testing.assert_close(ours[term].squeeze(), theirs[term], rtol=1e-5, atol=1e-5)
    for layer, leaves in dense.leaves.items():
        for mask, leaf in zip(module.masks[layer], leaves, strict=True):
            torch.testing.assert_close(mask.only().grad, leaf.grad, rtol=1e-3, atol=2e-5)


def test_prior_of_released_code_by_hand() -> None:
    """Two layers with all-ones masks of rank 64: L5 = lambda * 64; the "nuclear norm" of a vector is its length."""
    from test_learned_methods import layer

    method: Any = load("duolora_released").merge
    low, high = layer(1.0, (64, 64), "down_blocks.2.attentions.0.x"), layer(0.0, (64, 64), "up_blocks.1.attentions.0.x")
    neutral = layer(1.0, (64, 64), "mid_block.attentions.0.x")
    layers = {each.name: each for each in (low, high, neutral)}
    masks = method.masks(layers, 0)
    assert float(0.01 * method.layer_prior(layers, masks)) == pytest.approx(0.64)
    m = torch.tensor([3.0, 4.0])
    plain: Any = load("duolora").merge
    assert float(method.nuclear([m])) == 5.0 and float(plain.nuclear([m])) == 7.0
    masks[low.name][0].r.fill_(2.0)
    # content layer: ||m_s||_2 - ||m_c||_2 + sum|m_c| = 8 - 16 + 128;  style layer: 8 - 8 + 64
    assert float(method.layer_prior(layers, masks)) == pytest.approx((120 + 64) / 2)
    # with the paper's hinge the negative difference is nothing: 128 and 64
    hinged: Any = load("duolora_released", hinge=True).merge
    assert float(hinged.layer_prior(layers, masks)) == pytest.approx((128 + 64) / 2)


def test_community_codes_similarity_starts_at_its_known_value() -> None:
    """0.01 * 560 layers = 5.6 on SDXL, the value that its users report; 5.544 after 100 steps of 5e-5."""
    from test_learned_methods import layer

    method: Any = load("ziplora_mkshing").merge
    masks = method.masks({f"layer{i}": layer(0.0, name=f"layer{i}") for i in range(560)}, 0)
    assert float(0.01 * method.overlap(masks)) == pytest.approx(5.6)
    for each in masks.values():
        for mask in each:
            mask.i.sub_(100 * 5e-5)
    assert float(0.01 * method.overlap(masks)) == pytest.approx(5.544, abs=1e-3)


@pytest.mark.parametrize("name", ["ziplora", "duolora", "duolora_released"])
def test_terms_of_pair_do_not_depend_on_its_company(model, loras, pair, name) -> None:
    from lorabench.lora.adapter import LoRA, in_basis
    from lorabench.merging.draws import Draws
    from lorabench.merging.learn import Merging

    method = short(name)
    module = merging(model, loras, pair, method, seed=5)
    one = {term: value.detach() for term, value in module.loss(0).items()}
    module.adapters.detach()
    method = method.merge
    rebased = in_basis(loras, method.basis)
    others = in_basis([random_lora(model, 3, "other"), random_lora(model, 2, "look")], method.basis)
    layers = model.layers.adapted(rebased, pair.roles)
    starts = [method.masks(layers, seed) for seed in (9, 5)]
    stacked = [LoRA.stack(alike) for alike in zip(others, rebased, strict=True)]
    adapters = model.attach(stacked)
    pairs = [recolored(pair, "cup_1"), pair]
    draws = [Draws(model, each, seed) for each, seed in zip(pairs, (9, 5), strict=True)]
    both = Merging(adapters, layers, method, starts, pairs, draws).loss(0)
    adapters.detach()
    for term, value in one.items():
        torch.testing.assert_close(both[term][1:], value, rtol=1e-5, atol=1e-6)
