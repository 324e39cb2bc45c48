"""The sampling benchmark generates like the product, counts UNet rows, and detects differences."""

from __future__ import annotations

import pytest
import torch
from merges import draw, sampled

from benchmarks import sampling
from benchmarks.sampling import LIVE, PLAIN, differing, goals, live_methods, table, uneven, ways_of
from lorabench.config.schemas import GenerateSpec
from lorabench.data.concepts import ROLES
from lorabench.merging.merge import Merged
from lorabench.merging.method import load
from lorabench.sampling.parts import StepScales


@pytest.fixture
def uneven_loras(loras):
    return [uneven(lora, role) for lora, role in zip(loras, ROLES, strict=True)]


def test_every_way_is_what_it_stands_for(model, uneven_loras) -> None:
    ways, before = ways_of(model, uneven_loras, live_methods(), 4)
    assert {"klora", "est_lora", "lora_switch", "lora_composite", "blora"} <= set(ways) and set(before) == set(ways)
    assert not differing(model, ways, uneven_loras, "float32")
    assert {ways[name].rows for name in (PLAIN, LIVE, "klora", "blora")} == {2} and ways["lora_composite"].rows == 4


def test_way_that_ignores_its_scales_is_seen(model, uneven_loras, monkeypatch) -> None:
    ways, _ = ways_of(model, uneven_loras, ["klora"], 4)
    ones = torch.ones(2)
    monkeypatch.setattr(StepScales, "at", lambda self, *_: dict.fromkeys(self.layers, ones[None]))
    assert set(differing(model, ways, uneven_loras, "float32")) == {"klora"}


@pytest.mark.parametrize("name", ["klora", "lora_composite", "blora"])
def test_way_draws_as_product_does(model, uneven_loras, name) -> None:
    method = load(name)
    ways, _ = ways_of(model, uneven_loras, [name], 3)
    with model.attach(ways[name].loras) as adapters:
        mine = model.decode(ways[name].draw(model, adapters, 3, 2)).permute(0, 2, 3, 1)
    result = Merged(ways[name].loras[0]) if method.is_file else None
    spec = GenerateSpec(images=2, steps=3, guidance=sampling.GUIDANCE, batch=2)
    theirs = draw(model, method, lambda: uneven_loras, ROLES, result, [sampling.SCENE] * 2, [0, 1], spec)
    assert abs((mine * 255).round() - torch.from_numpy(theirs).float()).max() <= 1


def test_layers_of_equal_scales_share_tensor(model, uneven_loras) -> None:
    scales, _ = sampled(model, load("klora"), uneven_loras, ROLES, 4)
    with model.attach(uneven_loras) as adapters:
        values = dict(zip(scales.layers, map(tuple, scales.values[1].tolist()), strict=True))
        assert set(values.values()) == {(1.0, 0.0), (0.0, 1.0)}
        adapters.rows(scales.at(1))
        assert len({id(module.scale) for module in adapters.layers.values()}) == 2
        for layer, module in adapters.layers.items():
            assert module.scale is not None
            content, style = values[layer]
            assert module.scale.tolist() == [[content] * 3 + [style] * 2]


def test_table_tells_ratios_within_rounds(model, uneven_loras) -> None:
    ways, before = ways_of(model, uneven_loras, ["klora"], 4)
    times = {PLAIN: [1.0, 2.0, 4.0], LIVE: [1.0, 2.0, 4.0], "klora": [1.1, 2.2, 4.0]}
    [line] = [line for line in table(times, ways, before).splitlines() if line.startswith("| klora")]
    assert [cell.strip() for cell in line.split("|")[2:6]] == ["2", "2200.0", "1.100", "1.05 to 1.10"]
    assert "| klora / one merged file | at most 1.05 | 1.100 | missed |" in goals(times)
