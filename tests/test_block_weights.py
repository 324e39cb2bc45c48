"""Weights by block: the numbers of supermerger and kohya, module paths and presets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Commands
from torch import Tensor

from lorabench import UserLoRA, merge
from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.lora.files.blocks import LISTS, block_id, block_weights

LAYERS = {  # layers of SDXL, by block in kohya's get_lbw_block_index: 0 is BASE, 1 IN00, 13 M00, 14 OUT00
    "text_encoder.encoder.layers.0.mlp.fc1": 0,
    "time_embedding.linear_1": 1,
    "down_blocks.0.resnets.1.time_emb_proj": 3,
    "down_blocks.1.attentions.0.proj_in": 5,
    "down_blocks.1.attentions.1.transformer_blocks.1.attn1.to_q": 6,
    "down_blocks.2.attentions.0.transformer_blocks.9.ff.net.2": 8,
    "down_blocks.2.attentions.1.proj_out": 9,
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": 13,
    "up_blocks.0.attentions.0.proj_in": 14,
    "up_blocks.0.attentions.1.proj_in": 15,
    "up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_out.0": 16,
    "up_blocks.1.attentions.0.proj_in": 17,
    "up_blocks.1.attentions.2.proj_in": 19,
    "up_blocks.2.resnets.2.time_emb_proj": 22,
}
NAMES = ["BASE", *(f"IN{i:02d}" for i in range(12)), "M00", *(f"OUT{i:02d}" for i in range(12))]


@pytest.fixture
def adapter() -> Adapter:
    rng = torch.Generator().manual_seed(0)
    factors = {name: Factors(torch.randn(2, 4, generator=rng), torch.randn(3, 2, generator=rng)) for name in LAYERS}
    text = {name: factors.pop(name) for name in list(factors) if name.startswith("text")}
    return Adapter(factors, text)


def dense(adapter: Adapter) -> dict[str, Tensor]:
    return {name: each.up @ each.down for name, each in [*adapter.items(), *adapter.text.items()]}


def by_block(adapter: Adapter, blocks: Any, role: str) -> Adapter:
    layers = [*(f"unet.{layer}" for layer in adapter), *adapter.text]
    return adapter.weighted(block_weights(layers, blocks, role, "style.blocks", "a.safetensors"))


def weights(adapter: Adapter, blocks: Any, role: str = "style") -> dict[str, float]:
    """Measure the weight of each layer, 0 if it is left out."""
    before, after = dense(adapter), dense(by_block(adapter, blocks, role))
    for name, update in after.items():
        torch.testing.assert_close(update, before[name] * (update.norm() / before[name].norm()), rtol=1e-5, atol=1e-6)
    return {name: float(after[name].norm() / before[name].norm()) if name in after else 0.0 for name in before}


@pytest.mark.parametrize("layer", LAYERS)
def test_block_of_layer_is_that_of_kohya(layer: str) -> None:
    found = layer if layer.startswith("text") else f"unet.{layer}"
    assert block_id(found) == NAMES[LAYERS[layer]]


@pytest.mark.parametrize("count", [12, 17, 20, 26])
def test_numbers_reach_their_blocks(adapter: Adapter, count: int) -> None:
    """Blocks without a number are left out, as supermerger's `to26` has it."""
    numbers = [0.1 * (index + 1) for index in range(count)]
    by_id = dict(zip(LISTS[count], numbers, strict=True))
    for given in (numbers, ",".join(map(str, numbers))):
        found = weights(adapter, given)
        assert found == pytest.approx({layer: by_id.get(NAMES[index], 0.0) for layer, index in LAYERS.items()}, 1e-5)


def test_blocks_without_number_are_named(adapter: Adapter, capsys: pytest.CaptureFixture[str]) -> None:
    weights(adapter, [1.0] * 17)
    assert "17 numbers name no IN00, OUT00, OUT01, OUT02: 0, as in supermerger" in capsys.readouterr().err


def test_module_paths_keep_other_layers(adapter: Adapter) -> None:
    found = weights(adapter, {"up_blocks.0": 0.5, "up_blocks.0.attentions.1": 0, "text_encoder": 2})
    expected = dict.fromkeys(LAYERS, 1.0)
    expected |= {"up_blocks.0.attentions.0.proj_in": 0.5, "up_blocks.0.attentions.1.proj_in": 0.0,
                 "up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_out.0": 0.5,
                 "text_encoder.encoder.layers.0.mlp.fc1": 2.0}  # fmt: skip
    assert found == pytest.approx(expected, 1e-5)


def test_presets_are_about_roles(adapter: Adapter) -> None:
    kept = {role: [layer for layer, value in weights(adapter, "blora", role).items() if value] for role in
            ("content", "style")}  # fmt: skip
    assert kept == {"content": ["up_blocks.0.attentions.0.proj_in"], "style": ["up_blocks.0.attentions.1.proj_in"]}
    assert set(weights(adapter, "style_only_up", "content").values()) == {1.0}
    style = weights(adapter, "style_only_up", "style")
    assert {layer for layer, value in style.items() if not value} == {
        layer for layer in LAYERS if layer.startswith(("down", "mid"))
    }


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([1.0] * 13, "must have 12, 17, 20 or 26 numbers"),
        ("1,2", "must have 12, 17, 20 or 26 numbers"),
        ("blra", "did you mean blora?"),
        ({"up_blocks.7": 1}, "names up_blocks.7, in which a.safetensors adapts no layer"),
        ({"up_blocks.0": "x"}, "has 'x', which is not a number"),
        (",".join("x" * 12), "has 'x', which is not a number"),
        (3.0, "must have 12, 17, 20 or 26 numbers"),
    ],
)
def test_other_blocks_are_refused(adapter: Adapter, blocks: Any, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        by_block(adapter, blocks, "style")


def test_blocks_reach_merge_in_python_and_on_command_line(
    commands: Commands, loras: tuple[Adapter, Adapter], folder: Path, tmp_path: Path
) -> None:
    for name, lora in zip(("a", "b"), loras, strict=True):
        lora.save(tmp_path / f"{name}.safetensors", format="store")
    only = [0.0] * 12
    only[LISTS[12].index("OUT01")] = 0.5
    content, style = (dense(lora) for lora in loras)
    expected = {
        name: content[name] + (0.5 * style[name] if name.startswith("up_blocks.0.attentions.1.") else 0)
        for name in content
    }
    pair = (tmp_path / "a.safetensors", UserLoRA(tmp_path / "b.safetensors", blocks=only))
    numbers = ",".join(f"{number:g}" for number in only)
    made = tmp_path / "merged.safetensors"
    words = [f"style.blocks={numbers}", f"style.blocks=[{numbers}]"]
    found = [merge(*pair, model=folder)]
    for word in words:
        done = commands.run("task=merge", "content=a.safetensors", "style=b.safetensors", f"model.path={folder}",
                            "task.dtype=float32", "method=direct", word, cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(Adapter.load(made))
    for each in map(dense, found):
        assert each.keys() == expected.keys()
        for name, update in each.items():
            torch.testing.assert_close(update, expected[name], rtol=1e-5, atol=1e-6)
