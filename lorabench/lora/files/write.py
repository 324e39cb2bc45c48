"""The one writer of LoRA files: factors by layer in, the names that other programs read out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lorabench.base import UserError
from lorabench.engine.failures import system_fault
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.files import names

DTYPES = ("float32", "float16", "bfloat16")
SDXL_TEXT_WIDTH = 2048


def write(
    lora: LoRA,
    path: Path | str,
    metadata: Mapping[str, str] | None = None,
    format: str = "diffusers",
    dtype: str | None = None,
) -> None:
    """Write a .safetensors file.

    format: "diffusers", which `pipe.load_lora_weights` reads (and ComfyUI), or "kohya", which A1111, ComfyUI, Forge and
        diffusers read.
    dtype: "float32", "float16" or "bfloat16"; None leaves the factors as they are.
    metadata: strings about the file's origin; readers ignore them.
    UserError if the format, the precision or the path cannot be, if a number is too large for the precision, or none
    at all, as after a training that diverged.
    """
    if format not in FORMATS:
        raise UserError(f"the LoRA format {format!r} is unknown; type {' or '.join(FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"a LoRA cannot be written as {dtype!r}; type {', '.join(DTYPES)}")
    factors = {**{f"unet.{layer}": each for layer, each in lora.items()}, **lora.text}
    for layer, each in factors.items():
        if not (torch.isfinite(each.down).all() and torch.isfinite(each.up).all()):
            raise UserError(
                f"{layer} has values that are no finite numbers: the training diverged; type a smaller lora.lr, or "
                "method.fit.lr where a merge is learned"
            )
    tensors, notes = FORMATS[format](factors)
    if dtype is not None:
        tensors = {key: _cast(key, tensor, dtype) for key, tensor in tensors.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", **notes, **(metadata or {})})
        Path(path).chmod(0o666 & ~umask())  # safetensors leaves a file to its owner alone
    except (OSError, SafetensorError) as error:
        line = f"{path} cannot be written ({error}); type a path in a folder that exists"
        raise UserError(system_fault(error, str(path)) or line) from None


def _diffusers(factors: Mapping[str, Factors]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """peft's names for the UNet; `lora_linear_layer` for text encoders, as diffusers writes them itself.

    (diffusers refuses peft's names where an encoder has adapters on its MLPs alone.)
    No alpha is written, which diffusers, peft and ComfyUI read as alpha = rank: the update is `up @ down` as it stands.
    """
    tensors = {}
    for layer, each in factors.items():
        component = layer.partition(".")[0]
        endings = ("lora_A", "lora_B") if component == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")
        for ending, tensor in zip(endings, (each.down, each.up), strict=True):
            tensors[f"{component}.{names.file_path(layer)}.{ending}.weight"] = _plain(tensor)
    return tensors, {}


def _kohya(factors: Mapping[str, Factors]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """kohya's names and one alpha for the whole file, the highest rank.

    Readers multiply by alpha / rank, so `up` holds the inverse where a layer has a lower rank. (alpha = rank at each
    layer would say the same, but diffusers 0.42 drops alphas that differ.) alpha is in fp32: bf16 lacks some integers.

    SDXL's layers carry LDM's block numbers, as kohya's trainer writes them. These depend on the number of layers in a
    block; where the layers do not tell it, all keep diffusers' block names, which A1111 and ComfyUI read as well. (All,
    since diffusers drops one kind from a file that has both.)
    """
    ldm = names.ldm_is_safe([layer.removeprefix("unet.") for layer in factors if layer.startswith("unet.")])
    alpha = max((each.rank for each in factors.values()), default=1)
    tensors, sdxl = {}, False
    for layer, each in factors.items():
        stem = names.kohya_stem(layer, ldm)
        if names.layer(stem) != layer:
            raise UserError(f"kohya's format has no name for {layer}; type format=diffusers")
        tensors[f"{stem}.lora_down.weight"] = _plain(each.down)
        tensors[f"{stem}.lora_up.weight"] = _plain(each.up if each.rank == alpha else each.up * (each.rank / alpha))
        tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
        sdxl |= layer.endswith((".attn2.to_k", ".attn2.to_v")) and each.down.shape[1] == SDXL_TEXT_WIDTH
    # A1111 takes a file with metadata for one of SD1.5, and hides it, unless they name SDXL.
    return tensors, {"ss_base_model_version": "sdxl_base_v1-0"} if sdxl else {}


def umask() -> int:
    """The process's, which can only be read by setting it."""
    os.umask(mask := os.umask(0o022))
    return mask


FORMATS = {"diffusers": _diffusers, "kohya": _kohya}


def _plain(tensor: Tensor) -> Tensor:
    """On memory of its own: safetensors refuses tensors that share it."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _cast(key: str, tensor: Tensor, dtype: str) -> Tensor:
    if key.endswith(".alpha"):
        return tensor
    cast = tensor.to(getattr(torch, dtype))
    if not torch.isfinite(cast).all():
        raise UserError(f"{key} reaches {tensor.abs().max():.3g}, too much for {dtype}; type dtype=bfloat16 or float32")
    return cast
