"""A tiny SDXL as one file with the key names of the original release (sd_xl_base_1.0.safetensors)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

from pretraining.architecture import build_pipeline, build_text_encoders, build_unet, build_vae
from pretraining.tokens import build_tokenizer

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def tiny_pipeline() -> StableDiffusionXLPipeline:
    """Build a random pipeline; its text encoders differ in width, by which diffusers distinguishes them in a file."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    first, second = build_text_encoders(tokenizer, 32, 2)[0], build_text_encoders(tokenizer, 64, 2)[1]
    unet = build_unet(widths=(8, 16, 16), heads=(1, 2, 2), layers=(1, 1, 2), text_width=48, groups=8)
    config = {**unet.config, "projection_class_embeddings_input_dim": 6 * 32 + 64}
    unet: Any = type(unet).from_config(config)
    return build_pipeline(unet, build_vae(widths=(8, 8, 8), groups=8), (first, second))


def save_single_file(pipeline: StableDiffusionXLPipeline, path: Path) -> None:
    tensors = {f"model.diffusion_model.{unet_key(key)}": value for key, value in pipeline.unet.state_dict().items()}
    tensors |= {f"first_stage_model.{vae_key(key)}": value for key, value in pipeline.vae.state_dict().items()}
    first = pipeline.text_encoder.state_dict()
    tensors |= {f"conditioner.embedders.0.transformer.text_model.{key}": value for key, value in first.items()}
    second = open_clip(pipeline.text_encoder_2.state_dict())
    tensors |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path)


def unet_key(key: str) -> str:
    for ours, theirs in TOP.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", key)
    if match:
        side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{3 * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        place = f"input_blocks.{3 * block + index + 1}" if side == "down" else f"output_blocks.{3 * block + index}"
        if kind == "upsamplers":
            return f"output_blocks.{3 * block + 2}.2.{rest}"
        return f"{place}.0.{resnet(rest)}" if kind == "resnets" else f"{place}.1.{rest}"
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key)
    assert middle, key
    if middle[1] == "attentions":
        return f"middle_block.1.{middle[3]}"
    return f"middle_block.{2 * int(middle[2])}.{resnet(middle[3])}"


def resnet(rest: str) -> str:
    layer, _, kind = rest.rpartition(".")
    return f"{RESNET[layer]}.{kind}"


def vae_key(key: str) -> str:
    """Convert a key of the VAE; decoder blocks are numbered from the end, and this VAE has no attention."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{2 - int(m[1])}.block", key)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample", key)


def open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert transformers' names to open_clip's, with q, k and v in one matrix and the projection transposed."""
    found: dict[str, Tensor] = {"text_projection": tensors["text_projection.weight"].T}
    for key, value in tensors.items():
        key = key.removeprefix("text_model.")
        if "embedding" in key:
            found["positional_embedding" if "position" in key else "token_embedding.weight"] = value
        elif key.startswith("final_layer_norm"):
            found[key.replace("final_layer_norm", "ln_final")] = value
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", key):
            rows = [tensors[f"text_model.{key.replace('q_proj', each)}"] for each in ("q_proj", "k_proj", "v_proj")]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(rows)
        elif "k_proj" not in key and "v_proj" not in key and key != "text_projection.weight":
            key = key.replace("encoder.layers.", "transformer.resblocks.").replace("self_attn", "attn")
            key = key.replace("layer_norm", "ln_").replace("fc1", "c_fc").replace("fc2", "c_proj")
            found[key] = value
    return found
