"""The layouts in which published weights come, brought to the names and shapes of the networks built here.

Only whole, known layouts are translated; what does not belong is left for the strict comparison to find.
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
COUNTERS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")  # 0, 1, 2, ... in old files


def translated(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Tensors:
    """The tensors as the network of the description `config` names and shapes them."""
    tensors = dict(tensors)
    if config["kind"] == "clip" and "vision_model.embeddings.class_embedding" in tensors:
        return from_transformers_clip(tensors)
    if config["architecture"].get("positions") == "resampled":
        tensors.pop("mask_token", None)  # of DINOv2's training
        side = config["architecture"]["args"]["img_size"] // tensors_patch(tensors)
        if "pos_embed" in tensors:
            tensors["pos_embed"] = resample_positions(tensors["pos_embed"], side)
    return tensors


def tensors_patch(tensors: Mapping[str, torch.Tensor]) -> int:
    """Pixels of a patch's side."""
    weight = tensors.get("patch_embed.proj.weight")
    return weight.shape[-1] if weight is not None and weight.ndim == 4 else 1


def from_transformers_clip(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """transformers' CLIPModel -> open_clip's CLIP: q, k, v joined, projections transposed, the rest renamed."""
    found: Tensors = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name in COUNTERS:
            continue
        new = clip_name(name)
        if joined := JOINED.fullmatch(new):
            layer, which, what = joined.groups()
            parts.setdefault(f"{layer}.attn.in_proj_{what}", {})[which] = value
        else:
            found[new] = value.T.contiguous() if name.endswith("_projection.weight") else value
    for name, qkv in parts.items():
        if len(qkv) == 3:  # else it stays missing
            found[name] = torch.cat([qkv[which] for which in "qkv"])
    return found


def clip_name(name: str) -> str:
    """A name of transformers' CLIPModel in OpenAI's naming; an unknown one as it is."""
    for pattern, new in CLIP_NAMES.items():
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, new, name)
            for old, short in LAYER_NAMES.items():
                name = name.replace(old, short)
            return name
    return name


def resample_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings [1, 1 + n^2, d], the class token's first, of an n x n grid -> of a side x side grid.

    Bicubic without antialiasing, as transformers' DINOv2 does, which published scores use.
    """
    grid = positions[:, 1:]
    n = round(grid.shape[1] ** 0.5)
    if n == side or n * n != grid.shape[1]:
        return positions
    image = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    resampled = image.permute(0, 2, 3, 1).reshape(1, side * side, -1)
    return torch.cat([positions[:, :1].float(), resampled], dim=1)
