"""Errors for files that are not LoRAs of SDXL, SD3 or FLUX.1; each names the kind of file, what is expected, a remedy.

The checks use only the first bytes, names and shapes, so that a checkpoint of gigabytes is refused at once.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from lorabench.base import UserError
from lorabench.lora.files import lycoris, names, transformer_names

EXPECTED = "a LoRA of an SDXL, SD3 or FLUX.1 model is expected"
WEIGHT_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # as diffusers and peft name them

# Pattern of a key, kind of such a file, remedy. The first pattern that any key matches is used.
KINDS = (
    (r"\.(hada|lokr)_t[12]$", "a LyCORIS adapter of convolutions", "train one of linear layers only"),
    (r"[._](b?oft_|oft_blocks|oft_diag)", "an OFT adapter", "train or extract a plain LoRA"),
    (r"\.on_input$|\.ia3_l", "an IA3 adapter", "train or extract a plain LoRA"),
    (r"\.[ab][12]\.weight$", "a LyCORIS GLoRA", "train or extract a plain LoRA"),
    (r"\.vera_lambda|vera_[AB]", "a VeRA adapter", "train a plain LoRA"),
    (r"\.diff(_b)?$|\.w_norm$|\.b_norm$", "a dense difference of weights", "extract a LoRA from it first"),
    (r"\.lora\.weight$", "a dense merge without factors", "give the LoRAs that went into it"),
    (r"(lora_B(\.\w+)?|lora_up|lora\.up)\.bias$", "a LoRA with biases", "train with lora_bias off"),
    (r"lora_embedding_[AB]", "a LoRA of token embeddings", "train a LoRA of linear layers only"),
    (r"motion_modules", "a LoRA for AnimateDiff", "give one trained on SDXL"),
    (r"(double|single)_stream_blocks[._]|dual_blocks[._]|joint_transformer_blocks|to_qkv_mlp_proj",
     "a LoRA of another transformer than SD3 or FLUX.1", "give one trained on the same model as the other LoRA"),
    (r"^lora_te3_|^text_encoder_3\.|SelfAttention|DenseReluDense", "a LoRA with layers of the T5 text encoder",
     "train one without it"),
    (r"^lora_prior_", "a LoRA of Stable Cascade", "give one trained on SDXL"),
    (r"^(model\.diffusion_model|first_stage_model|conditioner|cond_stage_model)\.", "a whole checkpoint",
     "give it as model.path, and a LoRA here"),
)  # fmt: skip

OLD_BLOCKS = re.compile(r"down_blocks\.0\.attentions\.|up_blocks\.2\.attentions\.|up_blocks\.3\.")
OLD_WIDTHS = {768: "SD1.5", 1024: "SD2"}  # widths of the text states; SDXL has 2048


def resolve(path: Path | str) -> Path:
    """Return the file to open: `path`, or the one in a folder of diffusers or peft.

    Raises:
        UserError: If there is none.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if len(found) != 1:
            raise UserError(f"{path} is a folder; {EXPECTED}; use the path of the .safetensors file")
        return found[0]
    if not path.is_file():
        raise UserError(f"{path} cannot be read as a LoRA: there is no such file; use the path of a .safetensors file")
    return path


def broken(path: Path, error: Exception) -> UserError:
    """Return the error for a file that safetensors cannot open."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return UserError(f"{path} cannot be read as a LoRA ({error}); use the path of a file that you may read")
    if start.startswith(b"PK\x03\x04") and not is_torch_archive(path):
        return UserError(f"{path} is a zip archive; unpack it and use the path of the .safetensors file in it")
    if start.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in {".pt", ".pth", ".bin", ".ckpt"}:
        return UserError(
            f"{path} is a pickle (.pt, .bin, .ckpt), which is not opened since it can run code; convert it: python -c "
            f'"import torch, safetensors.torch as s; s.save_file(torch.load({str(path)!r}, weights_only=True), '
            f'{str(path.with_suffix(".safetensors"))!r})"'
        )
    if start.startswith(b"version https://git-lfs"):
        return UserError(f"{path} cannot be read as a LoRA: it is a Git LFS pointer; use git lfs pull in its folder")
    if start.lstrip()[:1] == b"<":
        return UserError(f"{path} cannot be read as a LoRA: it is a web page; download the file itself")
    return UserError(
        f"{path} cannot be read as a LoRA in safetensors format ({error}); it is truncated or another format: "
        "download or export it again"
    )


def is_torch_archive(path: Path) -> bool:
    """Return whether a zip archive is a file of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return path.suffix != ".zip"  # truncated


def other_kinds(path: Path, keys: Iterable[str]) -> None:
    """Raise UserError if the keys are those of another kind of adapter, of another model, or of whole weights."""
    keys = list(keys)
    for pattern, kind, remedy in KINDS:
        for key in keys:
            if re.search(pattern, key):
                raise UserError(f"{path} is {kind} (key {key!r}); {EXPECTED}: {remedy}")
    if not any(names.split(key) or lycoris.split(key) for key in keys) and any(
        key.endswith((".weight", ".bias")) for key in keys
    ):
        raise UserError(
            f"{path} holds whole weights (key {keys[0]!r}); {EXPECTED}: give it as model.path, and a LoRA here"
        )


def unknown_key(path: Path, key: str, keys: Iterable[str]) -> UserError:
    """Return the error for a key in an unknown convention.

    Args:
        path: The file.
        key: The key.
        keys: All keys of the file, which show its family.
    """
    stems = [split[0] for each in keys if (split := names.split(each))]
    transformer = any(transformer_names.layers(stem) for stem in stems)
    component, models = ("transformer", "SD3 or FLUX.1") if transformer else ("unet", "SDXL, SD3 or FLUX.1")
    return UserError(
        f"{path} has the key {key!r}, whose spelling is not known; {EXPECTED}, in kohya's format "
        f"(lora_unet_<layer>.lora_down.weight) or diffusers' ({component}.<layer>.lora_A.weight): export it in one of "
        f"them, or give one trained on {models}"
    )


def kernels(path: Path, layer: str, down: tuple[int, ...], mid: tuple[int, ...] | None, up: tuple[int, ...]) -> None:
    """Check that factors are matrices, or those of a convolution, of which `down` or `mid` has the kernel.

    Args:
        path: The file.
        layer: Name of the layer.
        down, mid, up: Shapes of the factors; None if there is no middle one.

    Raises:
        UserError: If they are not.
    """
    edge, kernel = names.kernel(layer), down if mid is None else mid
    matrices = [up] if edge is not None and mid is None else [down, up]
    whole = all(len(shape) >= 2 and all(size == 1 for size in shape[2:]) for shape in matrices)
    if edge is not None:
        whole = whole and (kernel[2:] == (edge, edge) or (edge == 1 and len(kernel) == 2))
    if mid is not None:
        whole = whole and edge is not None and mid[:2] == (up[1], down[0])
    if not whole:
        shapes = f"{down}, {mid} and {up}" if mid else f"{down} and {up}"
        wanted = "matrices" if edge is None else f"those of a convolution of {edge} x {edge}"
        raise UserError(f"{path} has factors of shape {shapes} at {layer}, not {wanted}; download the file again")


def other_bases(path: Path, widths: Mapping[str, int], metadata: Mapping[str, str]) -> None:
    """Check that nothing in the file names another base model than one of SDXL, SD3 or FLUX.1.

    Args:
        path: The file.
        widths: Inputs of each adapted layer, by layer.
        metadata: Metadata of the file; kohya's trainer writes the base model there.

    Raises:
        UserError: If the base model is another one.
    """
    model = metadata.get("ss_base_model_version", "")
    transformer = any(names.file_component(layer) == "transformer" for layer in widths)
    if re.match(r"sd_v", model) or (re.match(r"sd3|flux", model) and not transformer):
        raise UserError(f"{path} was trained on {model}, as its metadata show; {EXPECTED}: give one trained on SDXL")
    for layer, width in widths.items():
        if OLD_BLOCKS.search(layer):
            raise UserError(
                f"{path} was trained on SD1.5 or SD2 (it adapts {layer}, which SDXL lacks); {EXPECTED}: "
                "give one trained on SDXL"
            )
        if re.search(r"\.attn2\.to_[kv]$", layer) and width in OLD_WIDTHS:
            raise UserError(
                f"{path} was trained on {OLD_WIDTHS[width]} (cross-attention reads {width} numbers, SDXL's 2048); "
                f"{EXPECTED}: give one trained on SDXL"
            )
