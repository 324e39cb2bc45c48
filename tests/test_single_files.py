"""Single files of SD3 in the names of the original code, and files that are not whole or of FLUX.2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers_tiny import save_flux, save_sd3

from lorabench.base import UserError
from lorabench.models.files import model_files, model_folder, preset
from lorabench.models.load import load

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CHECKPOINT = "model.diffusion_model."
OUTSIDE = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
INSIDE = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
FUSED = {
    "x_block.attn.qkv": [f"attn.to_{part}" for part in "qkv"],
    "context_block.attn.qkv": [f"attn.add_{part}_proj" for part in "qkv"],
    "x_block.attn2.qkv": [f"attn2.to_{part}" for part in "qkv"],
}


def original(weights: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Return the weights of a transformer of SD3 as Stability AI's checkpoints have them."""
    rest, found = dict(weights), {}

    def move(ours: str, theirs: str) -> None:
        for end in ("", ".weight", ".bias"):
            if ours + end in rest:
                tensor = rest.pop(ours + end)
                is_last = ours == "norm_out.linear" or ours == f"transformer_blocks.{blocks - 1}.norm1_context.linear"
                found[CHECKPOINT + theirs + end] = torch.cat(tensor.chunk(2)[::-1]) if is_last else tensor

    for ours, theirs in OUTSIDE.items():
        move(ours, theirs)
    for block in range(blocks):
        head = f"transformer_blocks.{block}."
        for ours, theirs in INSIDE.items():
            move(head + ours, f"joint_blocks.{block}.{theirs}")
        for theirs, parts in FUSED.items():
            for end in ("weight", "bias"):
                if f"{head}{parts[0]}.{end}" in rest:
                    fused = torch.cat([rest.pop(f"{head}{part}.{end}") for part in parts])
                    found[f"{CHECKPOINT}joint_blocks.{block}.{theirs}.{end}"] = fused
    assert not rest
    return {key: value.contiguous() for key, value in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd3(tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return original(load_file(folder / WEIGHTS), blocks=3)


def loaded(tensors: dict[str, Tensor], folder: Path, path: Path) -> Any:
    save_file(tensors, path)
    spec = replace(preset("sd3"), path=str(path), config=str(folder), dtype="fp32", vae=None)
    return load(model_files(spec))


def test_checkpoint_of_sd3_has_weights_of_its_folder(folder: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """A checkpoint has the autoencoder and text encoders too, which come from the folder of the configurations."""
    others = {"first_stage_model.decoder.conv_in.bias": torch.zeros(4), "text_encoders.clip_l.x": torch.zeros(4)}
    model, expected = loaded(tensors | others, folder, tmp_path / "sd3.safetensors"), load(model_folder(folder))
    found, wanted = model.denoiser.state_dict(), expected.denoiser.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_incomplete_checkpoint_is_one_line(folder: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    for lost in ("joint_blocks.1.x_block.mlp.fc1.weight", "final_layer.linear.bias"):
        rest = {key: value for key, value in tensors.items() if key != CHECKPOINT + lost}
        with pytest.raises(UserError, match=f"cannot be read as an SD3 model .a tensor is missing: '{lost}'") as error:
            loaded(rest, folder, tmp_path / "sd3.safetensors")
        assert "\n" not in str(error.value)


def test_tensors_without_place_are_refused(folder: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """diffusers ignores a tensor that its converter or its model does not know."""
    file = tmp_path / "sd3.safetensors"
    for odd in ("joint_blocks.0.x_block.attn.qkv.scale_weight", "guidance.weight"):
        with pytest.raises(UserError, match=rf"has \S*{odd}, for which \S*sd3 has no layer"):
            loaded(tensors | {CHECKPOINT + odd: torch.zeros(1)}, folder, file)
    other = save_sd3(tmp_path / "without_dual", dual=())
    with pytest.raises(UserError, match=r"has transformer_blocks.0.attn2.to_q.weight, for which \S*without_dual has"):
        loaded(tensors, other, file)


@pytest.mark.parametrize("prefix", ["", CHECKPOINT])
def test_checkpoint_of_flux_2_is_named(prefix: str, tmp_path: Path) -> None:
    names = ("double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight")
    save_file({prefix + name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is a FLUX.2 model, not a checkpoint of .* FLUX.1 model>"):
        model_files(replace(preset("flux"), path=str(tmp_path / "model.safetensors")))


def test_incomplete_checkpoint_of_flux_is_one_line(tmp_path: Path) -> None:
    folder, file = save_flux(tmp_path / "flux"), tmp_path / "flux.safetensors"
    for names in (("double_blocks.0.img_mod.lin.weight",), ("double_blocks.0.x", "single_blocks.0.x")):
        save_file({name: torch.zeros(1) for name in names}, file)
        spec = replace(preset("flux"), path=str(file), config=str(folder), vae=None)
        with pytest.raises(UserError, match=r"cannot be read as a FLUX.1 model .a tensor is missing: ") as error:
            load(model_files(spec))
        assert "\n" not in str(error.value)
