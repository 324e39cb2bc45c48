"""Every key of a LoRA file of SD3 or FLUX.1 is used or named in an error, in each convention of the trainers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.models.shapes import layer_map

WIDTH, RANK = 16, 4
KOHYA, PEFT = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")


@dataclass(frozen=True)
class Convention:
    """The names of a trainer.

    Args:
        stems: Output widths by stem, in units of WIDTH.
        ends: Ends of the keys of down and up.
        alpha: alpha in the file; None: no such keys.
        metadata: Metadata of the file.
        layers: Number of layers of diffusers that the stems hold.
        scale: alpha / rank.
    """

    stems: Mapping[str, int]
    ends: tuple[str, str]
    layers: int
    alpha: float | None = None
    metadata: Mapping[str, str] | None = None
    scale: float = 1.0

    def tensors(self) -> dict[str, Tensor]:
        rng, found = torch.Generator().manual_seed(0), {}
        for stem, outputs in self.stems.items():
            found[f"{stem}.{self.ends[0]}"] = torch.randn(RANK, WIDTH, generator=rng)
            found[f"{stem}.{self.ends[1]}"] = torch.randn(outputs * WIDTH, RANK, generator=rng)
            if self.alpha is not None:
                found[f"{stem}.alpha"] = torch.tensor(self.alpha)
        return found


BLOCK = "transformer_blocks.0.attn"
TE = "text_model_encoder_layers_0_self_attn_q_proj"
CONVENTIONS = {
    "diffusers": Convention(
        {f"transformer.{BLOCK}.to_q": 1, f"transformer.{BLOCK}.to_add_out": 1, "transformer.norm_out.linear": 2,
         "transformer.single_transformer_blocks.3.proj_mlp": 4, "transformer.proj_out": 1}, PEFT, 5,
        metadata={"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer.r": RANK})}, scale=2.0,
    ),
    "ai-toolkit, FLUX.1": Convention({f"transformer.{BLOCK}.to_out.0": 1, "transformer.x_embedder": 1}, PEFT, 2),
    "ai-toolkit, original names": Convention(
        {"diffusion_model.double_blocks.0.img_attn.qkv": 3, "diffusion_model.single_blocks.1.linear1": 7,
         "diffusion_model.joint_blocks.0.context_block.attn.qkv": 3}, PEFT, 10,
    ),
    "kohya, FLUX.1": Convention(
        {"lora_unet_double_blocks_0_img_attn_qkv": 3, "lora_unet_single_blocks_1_linear1": 7,
         "lora_unet_double_blocks_0_txt_mod_lin": 6, "lora_unet_final_layer_adaLN_modulation_1": 2,
         f"lora_te1_{TE}": 1}, KOHYA, 10, alpha=2.0, scale=0.5,
    ),
    "kohya, split_qkv": Convention(
        {f"lora_unet_double_blocks_0_txt_attn_{part}": 1 for part in "qkv"}, KOHYA, 3, alpha=2.0, scale=0.5
    ),
    "kohya, SD3": Convention(
        {"lora_unet_joint_blocks_0_x_block_attn_qkv": 3, "lora_unet_joint_blocks_0_x_block_attn2_qkv": 3,
         "lora_unet_joint_blocks_0_context_block_attn_proj": 1, "lora_unet_joint_blocks_0_x_block_mlp_fc1": 4,
         f"lora_te1_{TE}": 1, f"lora_te2_{TE}": 1}, KOHYA, 10, alpha=2.0, scale=0.5,
    ),
    "musubi-tuner": Convention({"lora_unet_double_blocks_0_img_mlp_0": 4}, KOHYA, 1, alpha=1.0, scale=1 / RANK),
    "fal": Convention(
        {"base_model.model.double_blocks.0.img_attn.qkv": 3, "base_model.model.final_layer.linear": 1}, PEFT, 4
    ),
    "BFL": Convention({"double_blocks.0.img_attn.qkv": 3, "single_blocks.1.linear2": 1}, PEFT, 4),
    "x-flux": Convention(
        {"double_blocks.0.processor.qkv_lora1": 3, "double_blocks.0.processor.proj_lora2": 1,
         "single_blocks.1.processor.qkv_lora": 3, "single_blocks.1.processor.proj_lora": 1},
        ("down.weight", "up.weight"), 8,
    ),
    "OneTrainer": Convention(
        {"lora_transformer_transformer_blocks_0_attn_to_q": 1, "lora_transformer_norm_out_linear": 2}, KOHYA, 2,
        alpha=2.0, scale=0.5,
    ),
    "LyCORIS": Convention({"lycoris_transformer_blocks_0_attn_add_k_proj": 1}, KOHYA, 1, alpha=2.0, scale=0.5),
    "DiffSynth": Convention(
        {f"{BLOCK}.to_v": 1, "single_transformer_blocks.3.proj_out": 1},
        ("lora_A.default.weight", "lora_B.default.weight"), 2,
    ),
}  # fmt: skip


@pytest.fixture(params=CONVENTIONS)
def convention(request: pytest.FixtureRequest) -> Convention:
    return CONVENTIONS[request.param]


def load(tensors: Mapping[str, Tensor], convention: Convention, tmp_path: Path) -> Adapter:
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "lora.safetensors",
              dict(convention.metadata or {}))  # fmt: skip
    return Adapter.load(tmp_path / "lora.safetensors")


def updates(lora: Adapter) -> dict[str, Tensor]:
    return {name: each.up @ each.down for name, each in [*lora.items(), *lora.text.items()]}


def test_update_is_that_of_factors_and_alpha(convention: Convention, tmp_path: Path) -> None:
    tensors = convention.tensors()
    found = updates(load(tensors, convention, tmp_path))
    assert len(found) == convention.layers
    total = sum(float(each.square().sum()) for each in found.values())
    down, up = ([value for key, value in tensors.items() if key.endswith(end)] for end in convention.ends)
    dense = [convention.scale * b @ a for a, b in zip(down, up, strict=True)]
    assert total == pytest.approx(sum(float(each.square().sum()) for each in dense), rel=1e-5)


def test_every_key_changes_update(convention: Convention, tmp_path: Path) -> None:
    tensors = convention.tensors()
    before = updates(load(tensors, convention, tmp_path))
    for key, value in tensors.items():
        after = updates(load(tensors | {key: 3 * value}, convention, tmp_path))
        changed = [name for name, update in before.items() if not torch.allclose(update, after[name])]
        assert changed, f"{key} is read and has no effect"


def test_every_other_key_is_named_in_error(convention: Convention, tmp_path: Path) -> None:
    """Module paths of diffusers are any, so their error comes from the model that has no such module."""
    tensors = convention.tensors()
    first, *_ = convention.stems
    down, up = (f"{first}_nothing.{end}" for end in convention.ends)
    with pytest.raises(UserError, match=f"{first}_nothing".removeprefix("transformer.").replace(".", r"\.")):
        lora = load(tensors | {down: torch.ones(RANK, WIDTH), up: torch.ones(WIDTH, RANK)}, convention, tmp_path)
        layer_map("flux").adapted([Adapter({name: lora[name] for name in lora if "nothing" in name})], ["content"])
    with pytest.raises(UserError, match=r"lacks one of the two factors"):
        load({key: value for key, value in tensors.items() if key != f"{first}.{convention.ends[0]}"}, convention,
             tmp_path)  # fmt: skip
