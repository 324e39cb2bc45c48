"""Merges of peft by lorabench, against peft and against dense formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import random_lora
from peft.utils.merge_utils import magnitude_prune, ties
from test_combine import FULL, close, dense, merged
from torch import Tensor

from lorabench.base import UserError
from lorabench.data.concepts import ROLES
from lorabench.merging.method import load

PRUNED = {  # peft's own functions of tensors, weights, density and sign
    "ties": ties,
    "magnitude_prune": lambda tensors, weights, density, sign: magnitude_prune(tensors, weights, density),
}


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("name", ["ties", "magnitude_prune"])
def test_prunings_are_peft_s_on_dense_update(model, loras, name, sign) -> None:
    lora, error = merged(model, name, loras, density=0.3, weight=0.8, sign=sign, **FULL)
    weights = torch.tensor([0.8, 0.8])
    for layer in loras[0]:
        both = [dense(each, layer).float() for each in loras]
        expected = ties(both, weights, 0.3, sign) if name == "ties" else magnitude_prune(both, weights, 0.3)
        close(dense(lora, layer), expected.double())
    assert error < 1e-5


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("name", PRUNED)
def test_peft_types_on_dense_update(model, loras, name, sign) -> None:
    lora, _ = merged(model, f"peft_{name}_svd", loras, density=0.3, weight=0.8, sign=sign, **FULL)
    for layer in loras[0].layers[:8]:
        both = [dense(each, layer).float() for each in loras]
        close(dense(lora, layer), PRUNED[name](both, torch.full((2,), 0.8), 0.3, sign).double())


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("name", PRUNED)
def test_peft_types_on_both_factors_apart(model, name, sign) -> None:
    equal = [random_lora(model, 3, name) for name in ("a", "b")]
    lora, _ = merged(model, f"peft_{name}", equal, density=0.3, weight=0.8, sign=sign)
    for layer in equal[0].layers[:8]:
        roots = torch.full((2,), 0.8**0.5)
        down, up = (PRUNED[name]([getattr(e[layer], part) for e in equal], roots, 0.3, sign) for part in ("down", "up"))
        close(dense(lora, layer), up.double() @ down.double())


def assert_pruned_at_random(found: Tensor, parts: list[Tensor], elects: bool) -> None:
    """Every entry is the sum of the kept entries of the parts, or the mean of those with one sign."""
    none, (a, b) = torch.zeros_like(found), parts
    both = torch.where(a * b > 0, (a + b) / 2, torch.where(a.abs() > b.abs(), a, b)) if elects else a + b
    options, rounding = torch.stack([none, a.to(found), b.to(found), both.to(found)]), 1e-4 * a.abs().max()
    assert ((options - found).abs().amin(0) < rounding).all()
    assert 0.25 < (found.abs() < rounding).double().mean() < 0.75  # 0.49: neither was kept


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_peft_types_that_prune_at_random(model, name) -> None:
    equal = [random_lora(model, 3, name) for name in ("a", "b")]
    whole, _ = merged(model, f"peft_{name}_svd", equal, density=0.3, weight=0.8, **FULL)
    apart, _ = merged(model, f"peft_{name}", equal, density=0.3, weight=0.8)
    again, _ = merged(model, f"peft_{name}", equal, density=0.3, weight=0.8)
    for layer in equal[0].layers[:8]:
        assert_pruned_at_random(dense(whole, layer), [dense(each, layer) * 0.8 / 0.3 for each in equal], "ties" in name)
        for part in ("down", "up"):
            found = getattr(apart[layer], part)
            kept = [getattr(each[layer], part) * 0.8**0.5 / 0.3 for each in equal]
            assert_pruned_at_random(found, kept, "ties" in name)
            assert torch.equal(found, getattr(again[layer], part))


def test_peft_without_pruning(model, loras) -> None:
    cat, svd = merged(model, "peft_cat", loras)[0], merged(model, "peft_svd", loras)[0]
    for layer in loras[0].layers[:8]:
        total: Any = sum(dense(each, layer) for each in loras)
        close(dense(cat, layer), total)
        u, s, vt = torch.linalg.svd(total)
        cut = max(each[layer].rank for each in loras)  # peft's own default
        close(dense(svd, layer), u[:, :cut] * s[:cut] @ vt[:cut])


def test_peft_linear_has_cross_terms_and_wants_equal_ranks(model, loras) -> None:
    with pytest.raises(UserError, match="needs LoRAs of one rank, not 2, 3; use method=peft_cat"):
        load("peft_linear").merge.check(model.layers.adapted(loras, ROLES))
    equal = [random_lora(model, 3, name) for name in ("a", "b")]
    lora, _ = merged(model, "peft_linear", equal)
    for layer in equal[0].layers[:8]:
        sums: Any = [sum(getattr(each[layer], part).double() for each in equal) for part in ("up", "down")]
        close(dense(lora, layer), sums[0] @ sums[1])
