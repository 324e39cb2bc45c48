"""Methods that use one LoRA at a time, against an explicit loop, and in their limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU
from merges import draw, sampled
from transformers_tiny import tiny_transformer

from lorabench.config.schemas import GenerateSpec
from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.method import load
from lorabench.models.model import DiffusionModel
from lorabench.sampling.generate import generate
from lorabench.sampling.rules.est_lora import energy

ROLES: Any = ("content", "style")
SPEC = GenerateSpec(images=1, steps=4, guidance=2.0, batch=1)


def scales(model, method, loras, steps: int, roles: Any = ROLES) -> dict[str, list[tuple[float, ...]]]:
    found, _ = sampled(model, method, loras, roles, steps)
    live = {name: [tuple(step[index].tolist()) for step in found.values] for index, name in enumerate(found.layers)}
    return live | {name: [scales] * steps for name, scales in found.text.items()}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return tiny_transformer("dev", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("ablation", ["none", "klora_star", "klora_paper", "klora_star_paper", "fixed_choice"])
@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_klora_is_its_rule(model, loras, flux, family, ablation) -> None:
    """Sample with dense updates in a loop over steps and layers."""
    method = load("klora", ablation)
    if family == "flux":
        model, loras = flux, [random_lora(flux, seed) for seed in (0, 1)]
    dense = [{layer: (each.up @ each.down).numpy() for layer, each in lora.items()} for lora in loras]
    sums_of = np.array([[np.abs(each[layer]).sum() for layer in dense[0]] for each in dense])
    ratios = sums_of[0] / sums_of[1]
    paper = ablation.endswith("paper")
    gamma = sums_of[0].sum() / sums_of[1].sum() if paper else ratios[ratios < 3 * ratios.mean()].mean()
    star, offset = "star" in ablation, 1.3 if paper else 0.85 * 1.5
    found = scales(model, method, loras, 10)
    chosen = set()
    for layer, each in dense[0].items():
        k = loras[0][layer].rank * loras[1][layer].rank
        sums = [np.sort(np.abs(matrix).ravel())[-k:].sum() for matrix in (each, dense[1][layer])]
        for step in range(10):
            s = (1.5 * step / 10 + offset) % 1.5 if star else 1.5 * step / 10 + 0.5
            s = 1.25 if ablation == "fixed_choice" else s
            content = sums[0] / gamma / (sums[1] * s) > 1 if s else True
            assert found[layer][step] == ((1.0, 0.0) if content else (0.0, 1.0)), (layer, step)
            chosen.add(content)
    assert chosen == {True, False}


def random_lora(model: DiffusionModel, seed: int) -> LoRA:
    """Return a LoRA of all linear layers of the blocks, whose norms differ between layers."""
    rng = torch.Generator().manual_seed(seed)
    return LoRA(
        {
            name: Factors(
                torch.randn(2, layer.in_features, generator=rng),
                torch.randn(layer.out_features, 2, generator=rng) * torch.rand(1, generator=rng),
            )
            for name, layer in model.layers.trained(targets="all").items()
        }
    )


def test_klora_s_balance_is_ratio_of_sums_or_mean_of_ratios() -> None:
    masses = [(1.0, 1.0), (8.0, 2.0)]
    found = [load("klora", ablation).sampling.gamma(masses) for ablation in ("klora_paper", "none")]  # pyright: ignore[reportAttributeAccessIssue]
    assert found == [9 / 3, (1 + 4) / 2]


def test_layers_far_from_mean_are_left_out_of_klora_s_balance(model, loras) -> None:
    content, style = loras
    layer = next(iter(content))
    loud = LoRA({**content, layer: Factors(content[layer].down * 1e4, content[layer].up)})
    layers = model.layers.adapted(loras, ROLES)
    method: Any = load("klora")
    plain, other = (method.sampling.margins(pair, layers) for pair in (loras, (loud, style)))
    rest = [name for name in plain if name != layer]
    torch.testing.assert_close([plain[name] for name in rest], [other[name] for name in rest], rtol=0.05, atol=0)


def test_est_lora_is_its_rule(model, loras) -> None:
    method = load("est_lora")
    energies = [{layer: float((e.up @ e.down).square().sum()) for layer, e in lora.items()} for lora in loras]
    balance = sum(energies[0].values()) / sum(energies[1].values())
    found = scales(model, method, loras, 8)
    for layer in energies[0]:
        for step in range(8):
            style = energies[0][layer] < (1.5 * step / 8 + 0.5) * energies[1][layer] * balance
            assert found[layer][step] == ((0.0, 1.0) if style else (1.0, 0.0))
    one = model.layers.adapted(loras, ROLES)[next(iter(loras[0]))]
    assert energy(loras, one, "content") == pytest.approx(energies[0][one.name], rel=1e-5)


@pytest.mark.parametrize(("ablation", "turns"), [("none", "000111222000"), ("late_switch", "000011122200")])
def test_switching_goes_round(model, loras, ablation, turns) -> None:
    three, roles = (*loras, loras[0]), ("content", "content", "style")
    method = load("lora_switch", ablation, tau=3)
    for each in scales(model, method, three, 12, roles).values():
        assert "".join(str(row.index(1.0)) for row in each) == turns
        assert all(sum(row) == 1 for row in each)


@pytest.mark.parametrize(
    ("method", "settings", "index"),
    [
        ("klora", {"beta": 1e-9, "alpha": 1e-9}, 0),
        ("klora", {"beta": 1e9}, 1),
        ("est_lora", {"discrepancy": 1.0, "alpha": 1e-9}, 0),
        ("lora_switch", {"tau": 4}, 0),
    ],
)
def test_limits_are_single_lora(model, loras, method, settings, index) -> None:
    images = draw(model, load(method, **settings), lambda: loras, ROLES, None, ["a mug"], [3], SPEC, CPU)
    expected = generate(model, [loras[index]], ["a mug"], [3], SPEC, CPU)
    assert np.abs(images.astype(int) - expected).max() <= 1


def test_est_lora_ends_with_style_alone(model, loras) -> None:
    for own in scales(model, load("est_lora", alpha=1e9, discrepancy=0.0), loras, 4).values():
        assert own[1:] == [(0.0, 1.0)] * 3  # at the first step, p is 0 and energies decide


def test_layer_of_one_role_is_that_role_s_whatever_threshold(model, loras) -> None:
    style = [LoRA({}), loras[1]]
    found = scales(model, load("est_lora", discrepancy=1.0), style, 2)
    assert all(own == [(0.0, 1.0)] * 2 for own in found.values())


@pytest.mark.parametrize("method", ["lora_switch", "lora_composite"])
def test_lora_scale_is_that_of_every_lora(model, loras, method, generate_spec) -> None:
    weak = [LoRA({layer: replace(each, up=0.8 * each.up) for layer, each in lora.items()}) for lora in loras]
    scaled, own = (
        draw(model, load(method, ablation), lambda used=used: used, ROLES, None, ["a mug"], [3], generate_spec, CPU)
        for ablation, used in (("lora_scale", loras), ("none", weak))
    )
    assert np.abs(scaled.astype(int) - own).max() <= 1


@pytest.mark.parametrize("method", ["klora", "est_lora", "lora_switch"])
def test_layers_that_one_lora_lacks_and_text_encoders(model, loras, method) -> None:
    layers = list(loras[0])
    text = {"text_encoder.encoder.layers.0.self_attn.q_proj": Factors(torch.ones(1, 32), torch.ones(32, 1))}
    content = LoRA({layer: loras[0][layer] for layer in layers[::2]}, text)
    style = LoRA({layer: loras[1][layer] for layer in layers[1::2]})
    found = scales(model, load(method), (content, style), 4)
    assert found.pop(next(iter(text))) == [(1.0, 1.0)] * 4
    if method != "lora_switch":
        assert all(row == (1.0, 0.0) for layer in layers[::2] for row in found[layer])
        assert all(row == (0.0, 1.0) for layer in layers[1::2] for row in found[layer])
    draw(model, load(method), lambda: (content, style), ROLES, None, ["a mug"], [3], SPEC, CPU)
