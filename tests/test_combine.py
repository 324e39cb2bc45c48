"""Weight-space merges against dense formulas and against libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import random_lora
from merges import merge_all
from peft.utils.merge_utils import ties
from scipy.stats import rankdata
from torch import Tensor

from lorabench.base import UserError, seed_of
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.compress import nearest
from lorabench.merging.merge import Merged, MergeItem
from lorabench.merging.method import Method, load
from lorabench.merging.moments import from_noise

ROLES = ("content", "style")
FULL = {"rank": 1000}  # as high as the layers allow: nothing is cut off
DENSE = ("ties", "dare_linear", "dare_ties", "magnitude_prune", "della", "breadcrumbs")
EXACT = ("np_lora", "knots", "tsv", "iso_c", "slerp")


def merged(model, name: str, loras, **settings: Any) -> tuple[LoRA, float]:
    """Merge LoRAs; of peft's methods only the first layers, because peft builds a network for each layer."""
    loras = [first_layers(each) for each in loras] if name.startswith("peft_") else loras
    return combine(load(name, **settings), loras, model.layers.adapted(loras, ROLES), 7)


def combine(method: Method, loras, layers, seed: int) -> tuple[LoRA, float]:
    merge: Any = method.merge
    result = merge.combined(loras, layers, seed, {})
    return result.file, result.error


def first_layers(lora: LoRA) -> LoRA:
    """Return the layers of the first attention block, which are of all kinds."""
    return LoRA({layer: lora[layer] for layer in lora.layers[:8]})


def dense(lora: LoRA, layer: str) -> Tensor:
    return lora[layer].up.double() @ lora[layer].down.double()


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    assert (left - right).norm() <= tolerance * right.norm(), float((left - right).norm() / right.norm())


def elected(updates: list[Tensor]) -> Tensor:
    """Return the mean, at each entry, of the updates that have the sign of their sum there."""
    stacked = torch.stack(updates)
    agree = (stacked * stacked.sum(0) > 0).double()
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della"])
def test_random_prunings_are_their_dense_formula(model, loras, name, density) -> None:
    """Compare with the same random draws: DARE's probability is the density, DELLA's rises with magnitude in a row."""
    epsilon = 0.4 if name == "della" and density < 1 else 0.0
    lora, _ = merged(model, name, loras, density=density, weight=0.8, epsilon=epsilon, **FULL)
    for layer in loras[0]:
        pruned = []
        for k, each in enumerate(loras):
            update = dense(each, layer)
            uniform = torch.rand(update.shape, generator=torch.Generator().manual_seed(seed_of("prune", 7, layer, k)))
            ranks = torch.stack([torch.from_numpy(rankdata(row.abs()) - 1) for row in update.float()])
            keep = density - epsilon / 2 + epsilon * ranks / (update.shape[1] - 1)
            pruned.append(torch.where(uniform < keep, update / keep, 0.0))
        merge: Any = sum if name == "dare_linear" else elected
        close(dense(lora, layer), 0.8 * merge(pruned))


def test_dare_keeps_expectation(model, loras) -> None:
    layer = model.layers.adapted(loras, ROLES)[loras[0].layers[0]]
    method: Any = load("dare_linear", density=0.5).merge
    updates = [lora[layer.name] for lora in loras]
    draws: Any = [method.combine(updates, layer, seed, None) for seed in range(400)]
    expected: Any = sum(dense(each, layer.name) for each in loras)
    assert (torch.stack(draws).double().mean(0) - expected).norm() < 0.15 * expected.norm()


def test_della_keeps_large_entries_more_often(model, loras) -> None:
    layer = model.layers.adapted(loras, ROLES)[loras[0].layers[0]]
    method: Any = load("della", density=0.5, epsilon=0.8).merge
    update = dense(loras[0], layer.name).float()
    kept = torch.stack([(method.pruned(update, torch.Generator().manual_seed(s)) != 0).float() for s in range(300)])
    order = update.abs().argsort(dim=1)
    share = kept.mean(0).gather(1, order)
    assert abs(share[:, 0].mean() - 0.1) < 0.05 and abs(share[:, -1].mean() - 0.9) < 0.05


def test_breadcrumbs_leave_out_both_ends(model, loras) -> None:
    method: Any = load("breadcrumbs", density=0.5, gamma=0.25).merge
    update = torch.arange(1.0, 13.0).view(3, 4)
    assert (method.pruned(update, torch.Generator()) != 0).nonzero().tolist() == [
        [r, c] for r in range(3) for c in range(4) if 4 <= update[r, c] <= 9
    ]


@pytest.mark.parametrize("hard", [False, True])
def test_np_lora_is_its_dense_formula(model, loras, hard) -> None:
    lora, _ = merged(model, "np_lora", loras, mu=0.5, hard=hard)
    for layer in loras[0]:
        content, style = (dense(each, layer) for each in loras)
        v = torch.linalg.svd(style).Vh[: loras[1][layer].rank].mT
        rho = 1.0 if hard else 0.5 / 1.5
        expected = style + content @ (torch.eye(len(v), dtype=v.dtype) - rho * v @ v.mT)
        close(dense(lora, layer), expected)
        if hard:  # the content does not read the inputs of the style
            assert (dense(lora, layer) @ v - style @ v).norm() < 1e-5 * style.norm()


@pytest.mark.parametrize("hard", [False, True])
def test_np_lora_projects_off_update_and_not_off_its_factors(model, loras, hard) -> None:
    """Rows of `down` that `up` maps to zero, and duplicate rows, add no inputs of the style."""
    content, style = loras
    idle = LoRA({
        layer: Factors(
            torch.cat([each.down, each.down[:1], torch.randn(1, each.down.shape[1])]),
            torch.cat([each.up, 0 * each.up[:, :1], 0 * each.up[:, :1]], dim=1),
        )
        for layer, each in style.items()
    })  # fmt: skip
    pair, _ = merged(model, "np_lora", [content, style], hard=hard)
    found, _ = merged(model, "np_lora", [content, idle], hard=hard)
    for layer in content:
        close(dense(found, layer), dense(pair, layer), 1e-4)


def test_knots_is_ties_in_shared_basis(model, loras) -> None:
    lora, _ = merged(model, "knots", loras, density=0.4)
    for layer in loras[0]:
        both = [dense(each, layer) for each in loras]
        u, s, vt = torch.linalg.svd(torch.cat(both, dim=1), full_matrices=False)
        rank = sum(each[layer].rank for each in loras)
        parts = list(vt[:rank].split(both[0].shape[1], dim=1))
        expected = (u[:, :rank] * s[:rank]) @ ties(parts, torch.ones(2), 0.4)
        close(dense(lora, layer), expected)


def test_knots_that_keeps_all_of_one_lora_is_that_lora(model, loras) -> None:
    lora, _ = merged(model, "knots", [loras[0], LoRA({})], density=1.0)
    for layer in loras[0]:
        close(dense(lora, layer), dense(loras[0], layer))


def test_tsv_and_iso_c_against_dense_decompositions(model, loras) -> None:
    tsv, iso = merged(model, "tsv", loras)[0], merged(model, "iso_c", loras)[0]
    for layer in loras[0]:
        parts = [torch.linalg.svd(dense(each, layer), full_matrices=False) for each in loras]
        ranks = [each[layer].rank for each in loras]
        p = torch.cat([u[:, :r] for (u, _, _), r in zip(parts, ranks, strict=True)], dim=1)
        v = torch.cat([vt[:r] for (_, _, vt), r in zip(parts, ranks, strict=True)]).mT
        s = torch.cat([s[:r] for (_, s, _), r in zip(parts, ranks, strict=True)])
        near = []
        for x in (p, v):
            y, _, zt = torch.linalg.svd(x, full_matrices=False)
            near.append(y @ zt)
        close(dense(tsv, layer), near[0] * s @ near[1].mT)
        u, s, vt = torch.linalg.svd(sum(dense(each, layer) for each in loras), full_matrices=False)
        rank = sum(ranks)
        close(dense(iso, layer), s[:rank].mean() * u[:, :rank] @ vt[:rank])


def test_tsv_of_orthogonal_updates_is_their_sum(model, loras) -> None:
    layers = model.layers.adapted(loras, ROLES)
    layer = next(layer for layer in layers.values() if min(layer.in_features, layer.out_features) >= 5)
    q = torch.linalg.qr(torch.randn(layer.in_features, layer.in_features)).Q
    p = torch.linalg.qr(torch.randn(layer.out_features, layer.out_features)).Q
    parts: Any = [type(loras[0][layer.name])(q[:, a:b].mT.clone(), p[:, a:b].clone()) for a, b in ((0, 3), (3, 5))]
    merge: Any = load("tsv").merge
    update: Any = merge.combine(parts, layer, 0, None)
    total: Any = sum(each.up.double() @ each.down.double() for each in parts)
    close((update.up @ update.down).double(), total)


@pytest.mark.parametrize("norm", ["mean", "sum"])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_is_its_dense_formula(model, loras, t, norm) -> None:
    lora, _ = merged(model, "slerp", loras, t=t, norm=norm)
    for layer in loras[0]:
        c, s = (dense(each, layer) for each in loras)
        angle = torch.acos((c * s).sum() / c.norm() / s.norm())
        length = (1 - t) * c.norm() + t * s.norm() if norm == "mean" else (c + s).norm()
        way = (torch.sin((1 - t) * angle) * c / c.norm() + torch.sin(t * angle) * s / s.norm()) / torch.sin(angle)
        close(dense(lora, layer), length * way)


@pytest.mark.parametrize("name", ["slerp", "tsv"])
def test_equal_loras_merge_to_themselves(model, loras, name) -> None:
    lora, _ = merged(model, name, [loras[0], loras[0]])
    for layer in loras[0]:
        close(dense(lora, layer), dense(loras[0], layer), 1e-4)


def test_flat_spectrum_of_equal_loras_has_their_directions_alone(model, loras) -> None:
    lora, _ = merged(model, "iso_c", [loras[0], loras[0]])
    for layer, each in loras[0].items():
        u, s, vt = torch.linalg.svd(2 * dense(loras[0], layer), full_matrices=False)
        close(dense(lora, layer), s[: each.rank].mean() * u[:, : each.rank] @ vt[: each.rank], 1e-4)


@pytest.mark.parametrize("rank", [1, 3, None])
def test_svd_is_nearest_and_tells_its_error(model, loras, rank) -> None:
    lora, error = merged(model, "svd", loras, rank=rank)
    lost = whole = 0.0
    for layer in loras[0]:
        total = sum(dense(each, layer) for each in loras)
        u, s, vt = torch.linalg.svd(total, full_matrices=False)
        cut = rank or max(each[layer].rank for each in loras)
        close(dense(lora, layer), u[:, :cut] * s[:cut] @ vt[:cut])
        lost, whole = lost + float(s[cut:].square().sum()), whole + float(s.square().sum())
    assert error == pytest.approx((lost / whole) ** 0.5, abs=1e-5)


@pytest.mark.parametrize("name", [*DENSE, *EXACT, "svd", "peft_cat", "peft_svd"])
def test_layers_that_one_lora_lacks(model, loras, name) -> None:
    content, style = map(first_layers, loras)
    half = LoRA({layer: style[layer] for layer in style.layers[::2]})
    lora, error = merged(model, name, [content, half])
    assert set(lora) == set(content) and 0 <= error < 1
    if name in ("np_lora", "tsv", "svd", "peft_cat", "peft_svd"):  # layers of only one LoRA stay as they are
        layer = content.layers[1]
        close(dense(lora, layer), dense(content, layer))


def test_ssr_merge_answers_each_prompt_as_its_lora_does(model, loras, pair) -> None:
    """Compare with the least-squares system from independently collected inputs of every layer."""
    from lorabench.merging.draws import Draws

    method: Any = load("ssr_merge", ridge=1e-12)
    [result] = merge_all(model, method, [MergeItem(loras, pair)])
    inputs: dict[str, Tensor] = {}
    layers = model.layers.adapted(loras, pair.roles)
    draws = Draws(model, pair, MergeItem(loras, pair).seed(0), loras)
    with model.attach(loras, dtype=torch.float32) as adapters:
        step = from_noise(draws.step(0, 1, adapters, layers))

        def keep(name: str):
            return lambda _, args: inputs.update({name: args[0].double()})

        for name, layer in adapters.layers.items():
            layer.register_forward_pre_hook(keep(name))
        step.teachers()
    checked = 0
    for name, x in inputs.items():
        own = [each.reshape(-1, each.shape[-1]) for each in x.chunk(2)]
        down = torch.cat([lora[name].down for lora in loras]).double()
        z = torch.cat([each @ down.mT for each in own])  # tokens of both prompts
        own_inputs = [part @ lora[name].down.double().mT for part, lora in zip(own, loras, strict=True)]
        wanted = torch.cat([torch.nn.functional.pad(z, at) for z, at in zip(own_inputs, ((0, 2), (3, 0)), strict=True)])
        r = torch.linalg.lstsq(z, wanted, driver="gelsd").solution.mT
        up = torch.cat([lora[name].up for lora in loras], dim=1).double()
        answers = [part @ (result.file[name].up.double() @ result.file[name].down.double()).mT for part in own]
        expected = [part @ (up @ r @ down).mT for part in own]
        if torch.linalg.matrix_rank(z) == 5 and torch.linalg.cond(z) < 1e3:
            close(torch.cat(answers), torch.cat(expected), 1e-3)
            checked += 1
    assert checked > 3


def test_merge_that_is_no_masked_sum_is_stored_whole(model, loras, pair, tmp_path) -> None:
    [result] = merge_all(model, load("svd", rank=2), [MergeItem(loras, pair)])
    result.save(tmp_path)
    again = Merged.load(tmp_path)
    assert again.error == result.error > 0 and again.masks is None and again.file.rank == 2


def test_several_subjects_are_merged_at_once_and_not_averaged(model, loras, pair) -> None:
    three = [random_lora(model, 2, name) for name in ("a", "b", "c")]
    roles = ("content", "content", "style")
    layers = model.layers.adapted(three, roles)
    for name in (*DENSE, *EXACT, "svd"):
        lora, _ = combine(load(name), three, layers, 0)
        assert set(lora) == set(three[0]) and all(torch.isfinite(each.up).all() for each in lora.values())
    layer = three[0].layers[0]
    content, other, style = (dense(each, layer) for each in three)
    v = torch.linalg.svd(style).Vh[:2].mT
    away = torch.eye(len(v), dtype=v.dtype) - (1 / 3) * v @ v.mT
    close(dense(combine(load("np_lora"), three, layers, 0)[0], layer), style + (content + other) @ away)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ties", {"density": 0.0}, "method.density=0.0 must be greater than 0"),
        ("della", {"epsilon": 1.5}, "method.epsilon=1.5"),
        ("breadcrumbs", {"gamma": 0.5}, "method.gamma=0.5"),
        ("np_lora", {"mu": -1.0}, "method.mu=-1.0 must be at least 0"),
        ("svd", {"rank": 0}, "method.rank=0"),
        ("slerp", {"t": 2.0}, "method.t=2"),
        ("ssr_merge", {"draws": 0}, "method.draws"),
        ("ties", {"rank": -1}, "method.rank=-1"),
        ("peft_svd", {"rank": 0}, "method.rank=0"),
        ("klora", {"trim": 1.0}, "method.trim=1"),
        ("est_lora", {"discrepancy": 1.5}, "method.discrepancy=1.5"),
        ("lora_switch", {"tau": 0}, "method.tau=0"),
        ("peft_cat", {"combination": "rings"}, "method.combination=rings is unknown"),
    ],
)
def test_settings_that_make_no_sense(name, settings, words) -> None:
    with pytest.raises(UserError, match=words):
        load(name, **settings)


def test_nearest_factors_are_balanced() -> None:
    update = torch.randn(6, 9)
    factors, lost, whole = nearest(update, 6)
    assert lost < 1e-6 * whole and torch.allclose(factors.up @ factors.down, update, atol=1e-5)
    assert torch.allclose(factors.up.norm(dim=0), factors.down.norm(dim=1), atol=1e-5)
