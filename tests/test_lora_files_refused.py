"""Other files than LoRAs of SDXL's linear layers are refused in one line: found content, expected content, fix."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn, ones

from lorabench.base import UserError
from lorabench.lora.adapter import LoRA

FILE = "lora.safetensors"
KOHYA = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_q"
LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"


def pair(stem: str, down: str = ".lora_down.weight", up: str = ".lora_up.weight", width: int = 8) -> dict[str, Tensor]:
    return {stem + down: ones(2, width), stem + up: ones(4, 2)}


GOOD = pair(KOHYA)
OTHER_KINDS = {
    "a LoHa of convolutions or without all parts": {f"{KOHYA}.hada_w1_a": ones(2, 2), f"{KOHYA}.alpha": ones(())},
    "a LoKr of convolutions or without all parts": {f"{KOHYA}.lokr_w1": ones(2, 2)},
    "a LyCORIS adapter of convolutions": {f"{KOHYA}.hada_t1": ones(2, 2, 3, 3)},
    "OFT": {f"{KOHYA}.oft_blocks": ones(2, 2)},
    "OFT ": {f"unet.{LAYER}.oft_R.weight": ones(2, 2)},
    "IA3": {f"{KOHYA}.weight": ones(2), f"{KOHYA}.on_input": ones(1)},
    "GLoRA": {f"{KOHYA}.a1.weight": ones(2, 2)},
    "DoRA": {**GOOD, f"{KOHYA}.dora_scale": ones(4)},
    "a DoRA": {
        **pair(f"unet.{LAYER}", ".lora_A.weight", ".lora_B.weight"), f"unet.{LAYER}.lora_magnitude_vector": ones(4)
    },
    "not matrices ": {**GOOD, f"{KOHYA}.lora_mid.weight": ones(2, 2, 3, 3)},
    "dense difference": {f"{KOHYA}.diff": ones(4, 8)},
    "dense merge": {f"unet.unet.{LAYER}.lora.weight": ones(4, 8)},
    "biases": {**pair(f"unet.{LAYER}", ".lora_A.weight", ".lora_B.weight"), f"unet.{LAYER}.lora_B.bias": ones(4)},
    "another transformer": pair("lora_transformer_double_stream_blocks_0_block_attn1_to_q"),
    "another transformer ": pair("transformer.joint_transformer_blocks.0.attn.to_q"),
    "another transformer  ": pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"),
    "the T5 text encoder": pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
    "Cascade": pair("lora_prior_unet_down_blocks_0_0_attention_attn_in_proj"),
    "whole checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": ones(2, 2)},
    "whole weights": {"down_blocks.0.resnets.0.conv1.weight": ones(2, 2, 3, 3), "conv_in.bias": ones(2)},
    "not those of a convolution of 3 x 3": pair("lora_unet_input_blocks_3_0_op"),
    "not those of a convolution of 1 x 1": {
        "lora_unet_input_blocks_4_0_skip_connection.lora_down.weight": ones(2, 4, 3, 3),
        "lora_unet_input_blocks_4_0_skip_connection.lora_up.weight": ones(4, 2, 1, 1),
    },
    "not matrices": {f"{KOHYA}.lora_down.weight": ones(2, 4, 3, 3), f"{KOHYA}.lora_up.weight": ones(4, 2, 1, 1)},
}  # fmt: skip
OTHER_BASES = {
    "SD1.5 or SD2": pair("lora_unet_down_blocks_0_attentions_0_proj_in"),
    "SD1.5 or SD2 ": pair("unet.up_blocks.3.attentions.0.proj_in", ".lora.down.weight", ".lora.up.weight"),
    "SD1.5": pair("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", width=768),
    "SD2": pair("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v", width=1024),
}
BROKEN = {
    "lacks one of the two factors": {f"{KOHYA}.lora_up.weight": ones(4, 2), f"{KOHYA}.alpha": ones(())},
    "two factors": {**GOOD, f"lora_unet_{LAYER.replace('.', '_')[:-1]}k.lora_down.weight": ones(2, 8)},
    "rank mismatch": {f"{KOHYA}.lora_down.weight": ones(3, 8), f"{KOHYA}.lora_up.weight": ones(4, 2)},
    "an alpha of shape": {**GOOD, f"{KOHYA}.alpha": ones(3)},
    "two adapters": {**GOOD, **pair(f"unet.{LAYER}")},
    "two adapters ": {**pair(f"unet.{LAYER}", ".lora_A.a.weight", ".lora_B.a.weight"),
                      **pair(f"unet.{LAYER}", ".lora_A.b.weight", ".lora_B.b.weight")},
    "not finite floats": {**GOOD, f"{KOHYA}.lora_up.weight": torch.full((4, 2), float("nan"))},
    "not finite floats ": {**GOOD, f"{KOHYA}.lora_up.weight": ones(4, 2, dtype=torch.int8)},
    "lacks every factor": {},
    "'lora_unet_nowhere.lora_down.weight'": {**GOOD, **pair("lora_unet_nowhere")},
    "'unet.nowhere.lora_down.weight'": {**GOOD, **pair("unet.nowhere")},
    "'step'": {**GOOD, "step": ones(())},
}  # fmt: skip
TO_DO = r"; .*(give|train|type|write|extract|download|export|save)"


@pytest.mark.parametrize("found", [*OTHER_KINDS, *OTHER_BASES, *BROKEN])
def test_other_content_is_named(tmp_path: Path, found: str) -> None:
    save_file((OTHER_KINDS | OTHER_BASES | BROKEN)[found], tmp_path / FILE)
    with pytest.raises(UserError, match=found.strip().replace(".", r"\.") + ".*" + TO_DO) as error:
        LoRA.load(tmp_path / FILE)
    assert str(error.value).startswith(str(tmp_path / FILE)) and "\n" not in str(error.value)


def test_good_part_of_those_files_is_read(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / FILE)
    assert LoRA.load(tmp_path / FILE).layers == [LAYER]


def test_base_model_in_kohyas_metadata_counts(tmp_path: Path) -> None:
    for model, right in (("sdxl_base_v1-0", True), ("sd_v1", False), ("sd3_m", False), ("", True)):
        save_file(GOOD, tmp_path / FILE, metadata={"ss_base_model_version": model})
        if right:
            assert len(LoRA.load(tmp_path / FILE)) == 1
            continue
        with pytest.raises(UserError, match=f"was trained on {model}.*give one trained on SDXL"):
            LoRA.load(tmp_path / FILE)


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / FILE
    refused = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "Git LFS pointer; use git lfs pull",
        b"<!doctype html><html></html>": "web page; download the file itself",
        b"": "truncated or another format: download",
        struct.pack("<Q", 10**9) + b"{}": "truncated or another format: download",
    }
    for content, message in refused.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"cannot be read as a LoRA.*{message}"):
            LoRA.load(path)
    save_file({f"{KOHYA}.lora_down.weight": ones(2, 800), f"{KOHYA}.lora_up.weight": ones(400, 2)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated or another format: download"):
        LoRA.load(path)
    with pytest.raises(UserError, match="no such file; use the path"):
        LoRA.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match=r"is a folder.*use the path"):
        LoRA.load(tmp_path)


class Exits(nn.Module):
    """Unpickling an instance raises an error."""

    def __reduce__(self):
        return (exit, (1,))


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.safetensors"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    torch.save({"weight": Exits()}, tmp_path / name)
    with pytest.raises(UserError, match=r"is a pickle.*convert it: python -c .*save_file.*lora\.safetensors"):
        LoRA.load(tmp_path / name)


@pytest.mark.parametrize("name", ["lora.zip", "lora.safetensors"])
def test_zip_archive_is_named(tmp_path: Path, name: str) -> None:
    save_file(GOOD, tmp_path / "inner.safetensors")
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.write(tmp_path / "inner.safetensors", "inner.safetensors")
    with pytest.raises(UserError, match=r"is a zip archive; unpack it and use the path of the \.safetensors file"):
        LoRA.load(tmp_path / name)


def test_command_that_converts_pickle_works(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "lora.bin")
    with pytest.raises(UserError) as error:
        LoRA.load(tmp_path / "lora.bin")
    code = str(error.value).split('python -c "')[1].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], check=True)
    assert LoRA.load(tmp_path / FILE).layers == [LAYER]
