"""Convert published weights to the names and shapes of the networks built here.

Only known layouts are converted, and only as a whole. The strict comparison that follows reports everything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]

# transformers.CLIPModel -> OpenAI's names, which open_clip uses.
CLIP_NAMES = {
    r"vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"vision_model\.embeddings\.patch_embedding\.weight": "visual.conv1.weight",
    r"vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"vision_model\.pre_layrnorm\.(.+)": r"visual.ln_pre.\1",
    r"vision_model\.post_layernorm\.(.+)": r"visual.ln_post.\1",
    r"vision_model\.encoder\.layers\.(.+)": r"visual.transformer.resblocks.\1",
    r"text_model\.embeddings\.token_embedding\.weight": "token_embedding.weight",
    r"text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"text_model\.final_layer_norm\.(.+)": r"ln_final.\1",
    r"text_model\.encoder\.layers\.(.+)": r"transformer.resblocks.\1",
    r"visual_projection\.weight": "visual.proj",
    r"text_projection\.weight": "text_projection",
    r"logit_scale": "logit_scale",
}
LAYER_NAMES = {
    ".self_attn.out_proj.": ".attn.out_proj.", ".layer_norm1.": ".ln_1.", ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.",
}  # fmt: skip
JOINED = re.compile(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)")
COUNTERS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")  # constants in old files


def translated(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Tensors:
    """Return the tensors with the names and shapes of the network that `config` describes."""
    tensors = dict(tensors)
    if config["kind"] == "clip" and "vision_model.embeddings.class_embedding" in tensors:
        return from_transformers_clip(tensors)
    if config["architecture"].get("positions") == "resampled":
        tensors.pop("mask_token", None)  # used only to train DINOv2
        side = config["architecture"]["args"]["img_size"] // tensors_patch(tensors)
        if "pos_embed" in tensors:
            tensors["pos_embed"] = resample_positions(tensors["pos_embed"], side)
    return tensors


def tensors_patch(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the side of a patch in pixels, or 1 if unknown."""
    weight = tensors.get("patch_embed.proj.weight")
    return weight.shape[-1] if weight is not None and weight.ndim == 4 else 1


def from_transformers_clip(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Convert transformers' CLIPModel to open_clip's CLIP: join q, k and v, transpose projections, rename the rest."""
    found: Tensors = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name in COUNTERS:
            continue
        new = clip_name(name)
        if joined := JOINED.fullmatch(new):
            layer, which, kind = joined.groups()
            parts.setdefault(f"{layer}.attn.in_proj_{kind}", {})[which] = value
        else:
            found[new] = value.T.contiguous() if name.endswith("_projection.weight") else value
    for name, qkv in parts.items():
        if len(qkv) == 3:  # an incomplete one stays missing
            found[name] = torch.cat([qkv[which] for which in "qkv"])
    return found


def clip_name(name: str) -> str:
    """Convert a name of transformers' CLIPModel to OpenAI's name; unknown names are unchanged."""
    for pattern, new in CLIP_NAMES.items():
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, new, name)
            for old, short in LAYER_NAMES.items():
                name = name.replace(old, short)
            return name
    return name


def resample_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Resample position embeddings from an n x n grid to a side x side grid.

    Bicubic without antialiasing, as in transformers' DINOv2, with which published scores are computed.

    Args:
        positions: Embeddings [1, 1 + n^2, d], the class token first.
        side: Patches per side of the new grid.
    """
    grid = positions[:, 1:]
    n = round(grid.shape[1] ** 0.5)
    if n == side or n * n != grid.shape[1]:
        return positions
    image = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    resampled = image.permute(0, 2, 3, 1).reshape(1, side * side, -1)
    return torch.cat([positions[:, :1].float(), resampled], dim=1)
