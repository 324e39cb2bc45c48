"""LoRAs of convolutions (LoCon) are merged exactly: read, summed, cut, and written in both formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorabench import merge
from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.files.names import kohya_stem, layer
from lorabench.models.sdxl.model import SDXL
from lorabench.models.shapes import layer_map

NAMES = {  # as kohya's trainer and LyCORIS write them
    "down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "down_blocks.1.resnets.0.conv1": "lora_unet_input_blocks_4_0_in_layers_2",
    "down_blocks.1.resnets.0.conv_shortcut": "lora_unet_input_blocks_4_0_skip_connection",
    "up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
    "up_blocks.1.resnets.2.conv2": "lora_unet_output_blocks_5_0_out_layers_3",
    "conv_in": "lora_unet_input_blocks_0_0",
    "conv_out": "lora_unet_out_2",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q":
        "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_q",
}  # fmt: skip


def drawn(model: SDXL, seed: int, rank: int, mid: bool = False) -> dict[str, Tensor]:
    """A file of kohya's format, with LyCORIS's `lora_mid` on convolutions of 3 x 3 if asked."""
    rng, tensors = torch.Generator().manual_seed(seed), {}
    for path, stem in NAMES.items():
        module = model.unet.get_submodule(path)
        out, width, *kernel = module.weight.shape
        inner = mid and kernel == [3, 3]
        edges = [1, 1] if inner else kernel
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, width, *edges, generator=rng)
        tensors[f"{stem}.lora_up.weight"] = torch.randn(out, rank, *([1, 1] if kernel else []), generator=rng)
        if inner:
            tensors[f"{stem}.lora_mid.weight"] = torch.randn(rank, rank, *kernel, generator=rng)
        tensors[f"{stem}.alpha"] = torch.tensor(0.5 * rank)
    return tensors


def kernels(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the dense kernels as ComfyUI makes them (comfy/weight_adapter/lora.py)."""
    found = {}
    for path, stem in NAMES.items():
        up, down = tensors[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_down.weight"]
        alpha = float(tensors[f"{stem}.alpha"]) / down.shape[0]
        shape = (up.shape[0], *down.shape[1:])
        if (inner := tensors.get(f"{stem}.lora_mid.weight")) is not None:
            final = [down.shape[1], down.shape[0], *inner.shape[2:]]
            product = down.transpose(0, 1).flatten(1) @ inner.transpose(0, 1).flatten(1)
            down = product.reshape(final).transpose(0, 1)
            shape = (up.shape[0], *down.shape[1:])
        found[path] = alpha * (up.flatten(1) @ down.flatten(1)).reshape(shape)
    return found


@pytest.fixture
def pair(model: SDXL, tmp_path: Path) -> dict[Path, dict[str, Tensor]]:
    files = {tmp_path / "a.safetensors": drawn(model, 0, 3, mid=True), tmp_path / "b.safetensors": drawn(model, 1, 2)}
    for path, tensors in files.items():
        save_file(tensors, path)
    return files


def test_map_has_convolutions_of_model(model: SDXL) -> None:
    expected = {
        name: (module.weight[0].numel(), module.out_channels)
        for name, module in model.unet.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    assert {name: (each.in_features, each.out_features) for name, each in model.layers.convolutions.items()} == expected


def test_names_of_convolutions_are_kohyas() -> None:
    for path, stem in NAMES.items():
        assert kohya_stem(f"unet.{path}", ldm=True) == stem and layer(stem) == f"unet.{path}"
    for path in layer_map("sdxl").convolutions:
        assert layer(kohya_stem(f"unet.{path}", ldm=True)) == f"unet.{path}"


def test_sum_is_exact_in_comfyui(pair, folder: Path, tmp_path: Path) -> None:
    merge(*pair, model=folder).save(tmp_path / "merged.safetensors")
    written = load_file(tmp_path / "merged.safetensors")
    names = {layer(key.partition(".")[0]): key.partition(".")[0] for key in written}
    found = {stem: {part: written[f"{names[f'unet.{path}']}.{part}"] for part in
                    ("lora_down.weight", "lora_up.weight", "alpha")} for path, stem in NAMES.items()}  # fmt: skip
    flat = {f"{stem}.{part}": tensor for stem, parts in found.items() for part, tensor in parts.items()}
    content, style = map(kernels, pair.values())
    for path, kernel in kernels(flat).items():
        torch.testing.assert_close(kernel, content[path] + style[path], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_files_load_in_diffusers(pair, folder: Path, tmp_path: Path, format: str) -> None:
    merge(*pair, model=folder).save(tmp_path / "merged.safetensors", format=format)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(tmp_path / "merged.safetensors"), adapter_name="merged")
    content, style = map(kernels, pair.values())
    for path in NAMES:
        found = pipeline.unet.get_submodule(path).get_delta_weight("merged")
        torch.testing.assert_close(found, content[path] + style[path], rtol=1e-4, atol=1e-4)


def test_layerwise_merges_take_kernels_as_matrices(pair, folder: Path) -> None:
    """`svd` cuts the flattened kernel, as kohya's svd_merge_lora does."""
    cut = merge(*pair, method="svd", model=folder, rank=2)
    content, style = map(kernels, pair.values())
    for path in NAMES:
        u, s, vt = torch.linalg.svd((content[path] + style[path]).flatten(1), full_matrices=False)
        rank = min(2, len(s))
        expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
        torch.testing.assert_close(cut[path].up @ cut[path].down, expected, rtol=1e-3, atol=1e-3)


def test_methods_that_run_model_refuse_convolutions(pair, folder: Path, model: SDXL) -> None:
    from lorabench import UserLoRA

    files = [UserLoRA(path, "a photo") for path in pair]
    with pytest.raises(UserError, match=r"adapts convolutions \(conv_in\), which ziplora does not run; use"):
        merge(*files, method="ziplora", model=folder, prompt="a photo")
    with pytest.raises(UserError, match=r"adapts the convolution conv_in, which is not run here; use task=merge"):
        model.attach([Adapter.load(next(iter(pair)))])
