"""Rank reduction against dense formulas and peft."""

from __future__ import annotations

import math
from typing import Any

import peft
import pytest
import torch
from conftest import random_lora
from torch import nn

from lorabench.base import UserError
from lorabench.lora.factors import Factors
from lorabench.lora.projection import (
    Bases,
    joined_reduction,
    principal_cosines,
    projected,
    reduction,
    reductions,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(weight: torch.Tensor, *bases: torch.Tensor) -> torch.Tensor:
    """W - P W with P = B (B^T B)^-1 B^T, the projector on the span of all bases."""
    b = torch.cat(bases, 1).double()
    return (weight.double() - b @ torch.linalg.solve(b.mT @ b, b.mT @ weight.double())).float()


def changed(weight: torch.Tensor, factors: Factors) -> torch.Tensor:
    return weight + factors.up @ factors.down


def test_reduction_equals_projector_and_has_lower_rank() -> None:
    weight, basis = normal(12, 20), normal(12, 5, seed=1)
    found = changed(weight, reduction(basis, weight))
    torch.testing.assert_close(found, dense(weight, basis), rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(found) == 7
    assert (torch.linalg.qr(basis).Q.mT @ found).abs().max() < 1e-5


def test_reduction_equals_peft() -> None:
    network: Any = nn.Sequential(nn.Linear(20, 12))
    weight = network[0].weight.detach().clone()
    config = peft.DeftConfig(para=True, decomposition_method="qr", r=5, target_modules=["0"])
    wrapped: Any = peft.get_peft_model(network, config)  # pyright: ignore[reportArgumentType]
    [basis] = [each for name, each in wrapped.named_parameters() if "deft_P" in name]
    with torch.no_grad():
        basis.copy_(normal(12, 5, seed=1))
    x = normal(3, 20, seed=2)
    layer: Any = network[0]
    bias = getattr(layer, "base_layer", layer).bias
    ours = x @ changed(weight, reduction(basis.detach(), weight)).mT + bias
    torch.testing.assert_close(wrapped(x), ours, rtol=1e-5, atol=1e-5)


def test_stacked_bases_are_orthonormal_with_gradient_of_qr() -> None:
    starts = {"a": normal(12, 5), "b": normal(12, 2, seed=1), "c": normal(7, 3, seed=2)}
    bases = Bases(starts)
    found = bases.orthonormal()
    assert {name: each.shape for name, each in found.items()} == {name: each.shape for name, each in starts.items()}
    probes = {name: normal(len(each), len(each), seed=3) for name, each in starts.items()}
    torch.stack([((q @ q.mT) * probes[name]).sum() for name, q in found.items()]).sum().backward()
    gradients = {
        name: grad[:, : bases.ranks[name]]
        for names, stack in zip(bases.names, bases.stacks, strict=True)
        for name, grad in zip(names, stack.grad, strict=True)
    }
    for name, start in starts.items():
        leaf = start.clone().requires_grad_()
        q = torch.linalg.qr(leaf).Q
        torch.testing.assert_close(found[name] @ found[name].mT, q @ q.mT, rtol=1e-5, atol=1e-5)
        ((q @ q.mT) * probes[name]).sum().backward()
        torch.testing.assert_close(gradients[name], leaf.grad, rtol=1e-4, atol=1e-4)
        assert abs(float((gradients[name] * start).sum())) < 1e-4  # the length of B does not matter
        torch.testing.assert_close(bases.starts()[name], start)
    assert (bases.stacks[0].grad[1, :, 2:] == 0).all() and bases.names[0] == ["a", "b"]  # padding stays zero


def test_joined_reduction_removes_all_subspaces_and_differs_from_sum() -> None:
    weight, left, right = normal(32, 20), normal(32, 4, seed=1), normal(32, 6, seed=2)
    parts = [reduction(left, weight), reduction(right, weight)]
    merged = joined_reduction(parts)
    torch.testing.assert_close(changed(weight, merged), dense(weight, left, right), rtol=1e-5, atol=1e-5)
    summed = weight + sum(each.up @ each.down for each in parts)
    assert (summed - changed(weight, merged)).norm() > 0.05 * weight.norm()


def test_joined_reduction_leaves_dependent_directions_out() -> None:
    weight, left = normal(32, 20), normal(32, 4, seed=1)
    right = torch.cat([left[:, :2] + 1e-9, normal(32, 1, seed=2)], 1)
    merged = joined_reduction([reduction(left, weight), reduction(right, weight)])
    assert merged.rank == 5
    torch.testing.assert_close(changed(weight, merged), dense(weight, left, right[:, 2:]), rtol=1e-5, atol=1e-5)


def test_joined_reduction_of_other_updates_is_refused() -> None:
    with pytest.raises(UserError, match=r"is not a rank reduction at scale 1 .*; use method/training=para"):
        joined_reduction([Factors(normal(2, 20), normal(32, 2, seed=1))])


def test_projected_layers_equal_changed_weights_by_row(model) -> None:
    layers = model.layers.trained()
    starts = [{name: normal(each.out_features, 3, seed=seed) for name, each in layers.items()} for seed in (1, 2)]
    bases = [Bases(each) for each in starts]
    xt, t = normal(2, *model.latent_shape), torch.tensor([20, 700])
    words = model.encode_prompts(["a mug", "a boat"])
    with torch.no_grad(), projected(model.denoiser, list(layers)) as modules:
        q = [each.orthonormal() for each in bases]
        for name, module in modules.items():
            module.q = torch.cat([each[name] for each in q], 1)
            module.scale = torch.eye(2).repeat_interleave(3, dim=1)
        found = model.predict(xt, t, words)
    for row, each in enumerate(starts):
        with torch.no_grad(), model.changed(reductions(model.denoiser, each)):
            expected = model.predict(xt, t, words)[row]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_principal_cosines_of_known_planes(model) -> None:
    angle = 0.3
    left = Factors(normal(2, 9), torch.eye(5)[:, :2] @ normal(2, 2, seed=1))
    turned = torch.zeros(5, 2)
    turned[0, 0], turned[1, 1], turned[2, 1] = 1, math.cos(angle), math.sin(angle)
    right = Factors(normal(2, 9, seed=2), turned @ normal(2, 2, seed=3))
    torch.testing.assert_close(
        principal_cosines(left, right), torch.tensor([1.0, math.cos(angle)], dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    assert len(principal_cosines(left, Factors(torch.zeros(0, 9), torch.zeros(5, 0)))) == 0
    same = random_lora(model, 3, "content")
    assert all(float(principal_cosines(each, each).min()) > 1 - 1e-6 for each in list(same.values())[:3])
