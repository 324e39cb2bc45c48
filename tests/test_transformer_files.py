"""LoRA files of SD3 and FLUX.1 in the names of all trainers, against diffusers' converter and formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux_lora_to_diffusers,
    _convert_xlabs_flux_lora_to_diffusers,
)
from safetensors.torch import save_file
from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.files.blocks import block_weights
from lorabench.models.shapes import layer_map, model_of

RANK, ALPHA = 4, 2.0
W = 3072  # width of FLUX.1, which diffusers' converter expects
SDXL = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def flux(width: int) -> dict[str, tuple[int, int]]:
    """Return layers as kohya's trainer names them, with (inputs, outputs)."""
    return {
        "double_blocks_0_img_attn_qkv": (width, 3 * width),
        "double_blocks_18_txt_attn_qkv": (width, 3 * width),
        "double_blocks_0_img_attn_proj": (width, width),
        "double_blocks_0_txt_attn_proj": (width, width),
        "double_blocks_0_img_mlp_0": (width, 4 * width),
        "double_blocks_0_img_mlp_2": (4 * width, width),
        "double_blocks_0_txt_mlp_0": (width, 4 * width),
        "double_blocks_0_txt_mlp_2": (4 * width, width),
        "double_blocks_0_img_mod_lin": (width, 6 * width),
        "double_blocks_0_txt_mod_lin": (width, 6 * width),
        "single_blocks_37_linear1": (width, 7 * width),
        "single_blocks_37_linear2": (5 * width, width),
        "single_blocks_37_modulation_lin": (width, 3 * width),
    }


def kohya(widths: dict[str, tuple[int, int]], prefix: str = "lora_unet_") -> dict[str, Tensor]:
    """Return the tensors of a file with alpha."""
    torch.manual_seed(0)
    tensors = {}
    for name, (inputs, outputs) in widths.items():
        tensors[f"{prefix}{name}.lora_down.weight"] = torch.randn(RANK, inputs) / 50
        tensors[f"{prefix}{name}.lora_up.weight"] = torch.randn(outputs, RANK) / 50
        tensors[f"{prefix}{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


def load(tensors: dict[str, Tensor], tmp_path: Path, **metadata: str) -> Adapter:
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "lora.safetensors", metadata)
    return Adapter.load(tmp_path / "lora.safetensors")


def test_flux_file_of_kohya_is_that_of_diffusers_converter(tmp_path: Path) -> None:
    tensors = kohya(flux(W))
    lora = load(tensors, tmp_path, ss_base_model_version="flux1")
    expected: dict[str, Tensor] = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    layers = {key.removeprefix("transformer.").partition(".lora_")[0] for key in expected}
    assert set(lora.layers) == layers and len(layers) == 13 + 2 * 2 + 3
    for layer in layers:
        down, up = (expected[f"transformer.{layer}.lora_{each}.weight"] for each in "AB")
        x = torch.randn(down.shape[1], 3)  # the dense update is large
        torch.testing.assert_close(lora[layer].up @ (lora[layer].down @ x), up @ (down @ x), rtol=1e-4, atol=1e-5)
    assert model_of([lora]) == "flux"


def test_x_flux_file_is_that_of_diffusers_converter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for block, processors in {
        "double_blocks.0": ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2"),
        "single_blocks.3": ("qkv_lora", "proj_lora"),
    }.items():
        for name in processors:
            outputs, inputs = (48 if "qkv" in name else 16), (80 if name == "proj_lora" else 16)
            tensors[f"{block}.processor.{name}.down.weight"] = torch.randn(RANK, inputs)
            tensors[f"{block}.processor.{name}.up.weight"] = torch.randn(outputs, RANK)
    lora = load(tensors, tmp_path)
    expected: dict[str, Tensor] = _convert_xlabs_flux_lora_to_diffusers(dict(tensors))
    assert set(lora.layers) == {key.removeprefix("transformer.").partition(".lora_")[0] for key in expected}
    assert len(lora.layers) == 2 * 3 + 2 + 3 + 1
    for layer, each in lora.items():
        assert torch.equal(each.down, expected[f"transformer.{layer}.lora_A.weight"])
        assert torch.equal(each.up, expected[f"transformer.{layer}.lora_B.weight"])
    for name in ("double_blocks.0.processor.ip_lora1", "single_blocks.3.processor.key_lora2"):
        with pytest.raises(UserError, match=name):
            load(tensors | {f"{name}.down.weight": torch.ones(RANK, 16), f"{name}.up.weight": torch.ones(16, RANK)},
                 tmp_path)  # fmt: skip


@pytest.mark.parametrize("spelling", ["diffusion_model.", "lora_transformer_", "transformer."])
def test_spellings_give_same_layers(tmp_path: Path, spelling: str) -> None:
    known = load(kohya(flux(16)), tmp_path)
    tensors: dict[str, Tensor] = {}
    if spelling == "diffusion_model.":  # the original code's names: dots around numbers and modules
        for key, value in kohya(flux(16), "").items():
            name, _, end = key.partition(".")
            dotted = re.sub(r"_(\d+)_", r".\1.", name, count=1)
            dotted = re.sub(r"(img|txt)_(attn|mlp|mod)_(\w+)$", r"\1_\2.\3", dotted).replace(
                "modulation_", "modulation."
            )
            tensors[f"{spelling}{dotted}.{end}"] = value
    else:
        for layer, each in known.items():
            name = layer.replace(".", "_") if spelling.endswith("_") else layer
            tensors[f"{spelling}{name}.lora_down.weight"] = each.down
            tensors[f"{spelling}{name}.lora_up.weight"] = each.up
    again = load(tensors, tmp_path)
    assert again.layers == known.layers
    for layer, each in known.items():
        torch.testing.assert_close(again[layer].up @ again[layer].down, each.up @ each.down, rtol=1e-5, atol=1e-7)


def test_split_qkv_of_kohya_is_read(tmp_path: Path) -> None:
    names = {f"double_blocks_3_txt_attn_{part}": (16, 16) for part in "qkv"}
    lora = load(kohya(names), tmp_path)
    assert lora.layers == [f"transformer_blocks.3.attn.add_{part}_proj" for part in "kqv"]


def test_halves_of_last_modulation_are_swapped(tmp_path: Path) -> None:
    """The original lists shift, scale; diffusers lists scale, shift, in the last layer and in SD3's last text block."""
    tensors = kohya({"final_layer_adaLN_modulation_1": (W, 2 * W)})
    lora = load(tensors, tmp_path)
    up = tensors["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"] * ALPHA / RANK
    assert torch.equal(lora["norm_out.linear"].up, torch.cat([up[W:], up[:W]]))
    width = 1536
    tensors = kohya(
        {
            "joint_blocks_23_context_block_adaLN_modulation_1": (width, 2 * width),
            "joint_blocks_22_context_block_adaLN_modulation_1": (width, 6 * width),
        }
    )
    lora = load(tensors, tmp_path)
    last, other = (
        tensors[f"lora_unet_joint_blocks_{i}_context_block_adaLN_modulation_1.lora_up.weight"] for i in (23, 22)
    )
    assert torch.equal(lora["transformer_blocks.23.norm1_context.linear"].up, last.roll(width, 0) * ALPHA / RANK)
    assert torch.equal(lora["transformer_blocks.22.norm1_context.linear"].up, other * ALPHA / RANK)


def test_sd3_file_has_layers_of_sd3(tmp_path: Path) -> None:
    width = 1536
    lora = load(
        kohya(
            {
                "joint_blocks_0_x_block_attn_qkv": (width, 3 * width),
                "joint_blocks_0_x_block_attn2_qkv": (width, 3 * width),
                "joint_blocks_0_context_block_attn_qkv": (width, 3 * width),
                "joint_blocks_0_x_block_attn_proj": (width, width),
                "joint_blocks_0_context_block_mlp_fc1": (width, 4 * width),
            }
        ),
        tmp_path,
    )
    assert model_of([lora]) == "sd35_medium" and set(lora.layers) <= set(layer_map("sd35_medium"))
    assert len(lora.layers) == 11


def test_factors_of_fused_layer_give_same_merge_as_split_ones(tmp_path: Path) -> None:
    """The parts share `down`, and each has its rows of `up`: the dense update is cut, nothing else."""
    tensors = kohya({"double_blocks_0_img_attn_qkv": (16, 48)})
    lora = load(tensors, tmp_path)
    down, up = (tensors[f"lora_unet_double_blocks_0_img_attn_qkv.lora_{part}.weight"] for part in ("down", "up"))
    dense = (ALPHA / RANK) * up @ down
    parts = [lora[f"transformer_blocks.0.attn.to_{part}"] for part in "qkv"]
    torch.testing.assert_close(torch.cat([each.up @ each.down for each in parts]), dense, rtol=1e-5, atol=1e-6)


def test_qkv_that_kohya_trained_split_has_ranks_of_its_parts(tmp_path: Path) -> None:
    """sd-scripts with split_qkv saves three LoRAs as one, whose up is zero outside of three blocks on the diagonal."""
    downs = [torch.randn(RANK, W) / 50 for _ in range(3)]
    ups = [torch.randn(W, RANK) / 50 for _ in range(3)]
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{stem}.lora_down.weight": torch.cat(downs), f"{stem}.lora_up.weight": torch.block_diag(*ups),
        f"{stem}.alpha": torch.tensor(ALPHA),
    }  # fmt: skip
    lora = load(tensors, tmp_path)
    expected: dict[str, Tensor] = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    for part, down, up in zip("qkv", downs, ups, strict=True):
        each, name = lora[f"transformer_blocks.0.attn.to_{part}"], f"transformer.transformer_blocks.0.attn.to_{part}"
        assert torch.equal(each.down, down) and torch.equal(each.up, up * (ALPHA / (3 * RANK)))
        assert lora.shapes[f"transformer_blocks.0.attn.to_{part}"] == each.shape == (RANK, W, W)
        theirs = expected[f"{name}.lora_B.weight"] @ expected[f"{name}.lora_A.weight"]
        torch.testing.assert_close(each.up @ each.down, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_products_of_fused_layers_are_split(tmp_path: Path, kind: str) -> None:
    """LyCORIS' trainer for sd-scripts has LoHa and LoKr of fused layers; the parts are the rows of the dense update."""
    torch.manual_seed(0)
    shapes = {
        "LoHa": {"hada_w1_a": (112, 2), "hada_w1_b": (2, 16), "hada_w2_a": (112, 2), "hada_w2_b": (2, 16)},
        "LoKr": {"lokr_w1": (4, 4), "lokr_w2_a": (28, 2), "lokr_w2_b": (2, 4)},
    }[kind]
    parts = {name: torch.randn(shape) for name, shape in shapes.items()}
    if kind == "LoHa":
        dense = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    else:
        dense = torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
    tensors = {f"lora_unet_single_blocks_3_linear1.{name}": each for name, each in parts.items()}
    lora = load(tensors | {"lora_unet_single_blocks_3_linear1.alpha": torch.tensor(ALPHA)}, tmp_path)
    layers = [*(f"single_transformer_blocks.3.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.3.proj_mlp"]
    assert lora.layers == sorted(layers)
    found = torch.cat([lora[layer].up @ lora[layer].down for layer in layers])
    torch.testing.assert_close(found, dense * ALPHA / 2, rtol=1e-4, atol=1e-5)
    assert all(lora.shapes[layer] == lora[layer].shape for layer in layers)
    for key in tensors:
        with pytest.raises(UserError, match="without all parts at"):
            load({other: each for other, each in tensors.items() if other != key}, tmp_path)


QKV = "double_blocks_0_img_attn_qkv"


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        (f"lora_unet_{QKV}.dora_scale", (3 * W, 1), f"is a DoRA of a fused layer .*{QKV}"),
        ("lora_unet_double_blocks_0_img_attn_norm_query_norm.w_norm", (128,), "dense difference .*query_norm"),
        ("lora_unet_double_blocks_0_img_mlp_0.diff_b", (4 * W,), "dense difference .*diff_b"),
        ("lora_unet_img_in.diff", (W, 64), "dense difference .*img_in.diff"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", (128,), "'double_blocks.0.img_attn.norm.key_norm.scale'"),
        ("img_in.lora_B.bias", (W,), "LoRA with biases .*img_in"),
        ("lora_unet_img_in.reshape_weight", (2,), "'lora_unet_img_in.reshape_weight', whose spelling is not known"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", (4, 64), "T5 text encoder"),
        ("lora_te2_encoder_block_0_layer_1_DenseReluDense_wo.lora_down.weight", (4, 64), "T5 text encoder"),
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight", (4, 64), "T5 text encoder"),
        ("t5xxl", (2, 4096), "'t5xxl', whose spelling is not known"),
        ("distilled_guidance_layer.in_proj.lora_A.weight", (4, 64), "'distilled_guidance_layer"),
        ("diffusion_model.single_blocks.0.linear1.lora_B.weight", (9 * W, 4), "'diffusion_model.single_blocks.0"),
    ],
)
def test_odd_key_is_named(tmp_path: Path, key: str, shape: tuple[int, ...], words: str) -> None:
    """Such keys occur in public files; diffusers drops most of them."""
    tensors = kohya({QKV: (W, 3 * W)}) | {key: torch.ones(shape)}
    if key.endswith("linear1.lora_B.weight"):  # FLUX.2 klein: gated feed-forward, 9 parts instead of 7
        tensors[key.replace("lora_B", "lora_A")] = torch.ones(4, W)
    with pytest.raises(UserError, match=words) as error:
        load(tensors, tmp_path)
    assert "\n" not in str(error.value)


def test_hints_are_those_of_family_of_file(tmp_path: Path) -> None:
    good, odd = kohya({"single_blocks_3_linear2": (5 * 16, 16)}), {"img_in.reshape_weight": torch.ones(2)}
    with pytest.raises(UserError, match=r"\(transformer.<layer>.lora_A.weight\): .* trained on SD3 or FLUX.1$"):
        load(good | odd, tmp_path)
    with pytest.raises(UserError, match=r"\(unet.<layer>.lora_A.weight\): .* trained on SDXL, SD3 or FLUX.1$"):
        load(kohya({SDXL: (640, 640)}, "") | odd, tmp_path)
    layers = [f"unet.{layer}" for layer in load(good, tmp_path)]
    for blocks in ("blora", [1.0] * 12, {"up_blocks.0": 0.5}, {"single_transformer_blocks.3": "x"}):
        with pytest.raises(UserError, match=r"; use style\.blocks=\{single_transformer_blocks\.3: 0\.5\}$"):
            block_weights(layers, blocks, "style", "style.blocks", "a.safetensors")
    weight = block_weights(layers, {"single_transformer_blocks.3": 0.5}, "style", "style.blocks", "a.safetensors")
    assert [weight(layer) for layer in layers] == [0.5]


def test_every_key_is_consumed_or_named(tmp_path: Path) -> None:
    good = kohya({"double_blocks_0_img_attn_proj": (W, W)})
    for name in ("double_blocks_0_img_attn_nothing", "single_blocks_0_norm", "joint_blocks_0_y_block_attn_qkv"):
        with pytest.raises(UserError, match=name):
            load(good | kohya({name: (W, W)}), tmp_path)
    with pytest.raises(UserError, match="two adapters on"):
        load(good | kohya({"transformer_blocks_0_attn_to_out_0": (W, W)}, "lora_transformer_"), tmp_path)
    product: dict[str, Any] = {"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": torch.ones(2, 2)}
    with pytest.raises(UserError, match=r"LoKr of convolutions or without all parts at .*attn\.to_q"):
        load(product, tmp_path)
