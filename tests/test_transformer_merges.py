"""Commands on LoRA files of SD3 and FLUX.1: merging, sampling, inspection, and files that do not fit together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_config import composed
from test_transformer_files import SDXL, W, kohya

from lorabench.lora.adapter import Adapter
from lorabench.lora.files.tensors import TensorFile
from lorabench.tasks.file_request import Request

Widths = dict[str, tuple[int, int]]  # inputs and outputs by layer
FILES = ("content=a.safetensors", "style=b.safetensors")
GOOD: Widths = {"lora_unet_double_blocks_0_img_attn_proj": (W, W)}


def save(tmp_path: Path, content: Widths, style: Widths, prefix: str = "", **metadata: str) -> None:
    """Write the files a.safetensors and b.safetensors."""
    for name, widths in (("a", content), ("b", style)):
        save_file(kohya(widths, prefix), tmp_path / f"{name}.safetensors", metadata)


@pytest.mark.parametrize("method", ["direct", "svd"])
def test_two_files_are_merged_without_model(commands: Any, tmp_path: Path, method: str) -> None:
    small = {"double_blocks_0_img_attn_qkv": (W, 3 * W), "single_blocks_3_linear1": (W, 7 * W)}
    save(tmp_path, small, small, "lora_unet_")
    options = ["task.dtype=float32", "output=m.safetensors", f"method={method}"]
    done = commands.run("task=merge", *FILES, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    merged, one = Adapter.load(tmp_path / "m.safetensors"), Adapter.load(tmp_path / "a.safetensors")
    assert merged.layers == one.layers
    if method == "direct":
        layer = "single_transformer_blocks.3.proj_mlp"
        expected = 2 * one[layer].up @ one[layer].down
        torch.testing.assert_close(merged[layer].up @ merged[layer].down, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("hydra")
def test_sampling_is_that_of_model_of_files(tmp_path: Path) -> None:
    save(tmp_path, GOOD, GOOD)
    files = [f"{role}.lora={tmp_path}/a.safetensors" for role in ("content", "style")]
    files.append("prompt=a sks dog in szn style")

    def sampled(*overrides: str) -> tuple[str, int, float]:
        request = Request.of(composed("task=generate", "method=direct", *files, *overrides))
        return request.model.name, request.generation.steps, request.generation.guidance

    assert sampled() == ("flux", 28, 3.5)
    assert sampled("generate.steps=8") == ("flux", 8, 3.5)
    assert sampled("model=flux_schnell") == ("flux_schnell", 4, 1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=unziplora"], "gives each LoRA its own prompt.*; use ablation=no_prompt_separation, or an SDXL model"),
        (["method=unziplora", "model=flux", "model.true_guidance=true"], "use ablation=no_prompt_separation, or"),
        (["method=lora_composite"], "lora_composite sums predictions.* use model.true_guidance=true or"),
        (["model=flux_schnell", "method=direct", "generate.guidance=3"], "generate.guidance=3 has no effect"),
        (["method=direct", "generate.negative=bad"], "use generate.negative=null"),
        (["method=direct", "generate.sampler=euler"], "use generate.sampler=model"),
    ],
)
def test_sampling_is_refused_before_model_is_downloaded(
    commands: Any, tmp_path: Path, overrides: list[str], message: str
) -> None:
    save(tmp_path, GOOD, GOOD)
    done = commands.run("task=generate", *FILES, "prompt=a sks dog in szn style", *overrides, cwd=tmp_path)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "generated").exists()


FAMILIES = {  # a layer and its width
    "an SDXL model": (SDXL, 640),
    "an SD3 model": ("lora_unet_joint_blocks_0_x_block_attn_proj", 1536),
    "a FLUX.1 model": ("lora_unet_double_blocks_0_img_attn_proj", W),
}


@pytest.mark.parametrize(
    ("content", "style"),
    [("a FLUX.1 model", "an SDXL model"), ("an SD3 model", "a FLUX.1 model"), ("an SDXL model", "an SD3 model")],
)
def test_families_are_not_mixed(commands: Any, tmp_path: Path, content: str, style: str) -> None:
    a, b = ({layer: (width, width)} for layer, width in (FAMILIES[content], FAMILIES[style]))
    save(tmp_path, a, b)
    done = commands.run("task=merge", "method=direct", *FILES, cwd=tmp_path)
    line = rf"a.safetensors is a LoRA of {content} and \S*b.safetensors is a LoRA of {style}; they cannot be merged"
    assert done.returncode == 2 and re.search(line, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "merged.safetensors").exists()


TE2 = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.mark.parametrize(
    ("version", "layers"),
    [
        ("sd3_m", {"lora_unet_joint_blocks_0_x_block_attn_proj": 1536, TE2: 1280}),
        ("flux1", {"lora_unet_single_blocks_0_linear2": 5 * W}),
        ("", {"lora_unet_joint_blocks_0_x_block_attn_proj": 1536, TE2: 1280}),
    ],
)
def test_merged_file_has_base_model_of_its_files(
    commands: Any, tmp_path: Path, version: str, layers: dict[str, int]
) -> None:
    """SD3 has SDXL's second text encoder, which must not make the file one of SDXL."""
    base = {"ss_base_model_version": version} if version else {}
    sizes = {layer: (width, W if width > W else width) for layer, width in layers.items()}
    save(tmp_path, sizes, sizes, **base)
    done = commands.run("task=merge", *FILES, "output=m.safetensors", "method=direct", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metadata = TensorFile(tmp_path / "m.safetensors").metadata
    assert metadata.get("ss_base_model_version", "") == version and "modelspec.architecture" not in metadata
    assert set(Adapter.load(tmp_path / "m.safetensors").shapes) == set(Adapter.load(tmp_path / "a.safetensors").shapes)


FLUX_1, SD3_MEDIUM = "black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-3-medium-diffusers"


@pytest.mark.parametrize(
    ("content", "style", "line"),
    [
        (GOOD, {"transformer.transformer_blocks.0.attn.nothing": (W, W)},
         rf"b.safetensors does not fit {FLUX_1}: the LoRA adapts transformer_blocks.0.attn.nothing, which"),
        (GOOD, {"lora_unet_double_blocks_30_img_attn_proj": (W, W)},
         rf"b.safetensors does not fit {FLUX_1}: the LoRA adapts transformer_blocks.30.attn.to_out.0, which"),
        (GOOD, {"lora_unet_double_blocks_0_img_attn_proj": (6144, 6144)},
         rf"b.safetensors does not fit {FLUX_1}: the LoRA maps 6144 to 6144 channels at .*, the model {W} to {W}"),
        ({"lora_unet_img_in": (128, W)}, GOOD,
         rf"a.safetensors does not fit {FLUX_1}: the LoRA maps 128 to {W} channels at x_embedder, the model 64 to"),
        ({"lora_unet_single_blocks_40_linear2": (5 * W, W)}, {"lora_unet_img_in": (128, W)},
         rf"a.safetensors does not fit {FLUX_1}: the LoRA adapts single_transformer_blocks.40.proj_out, which"),
        ({"transformer.transformer_blocks.0.attn.nothing": (1536, 1536)}, {"lora_unet_joint_blocks_0_x_block_attn_proj":
         (1536, 1536)}, rf"a.safetensors does not fit {SD3_MEDIUM}: the LoRA adapts transformer_blocks.0.attn.nothing"),
        ({"lora_unet_joint_blocks_0_x_block_attn_proj": (1536, 1536)},
         {"lora_unet_joint_blocks_0_x_block_attn_proj": (2432, 2432)},
         r"a.safetensors is a LoRA of model=sd3 and \S*b.safetensors is a LoRA of model=sd35_large; they cannot be"),
        (GOOD, {TE2: (1280, 1280)}, rf"b.safetensors does not fit {FLUX_1}: the LoRA adapts text_encoder_2.text_model"),
    ],
)  # fmt: skip
def test_file_that_does_not_fit_is_named(commands: Any, tmp_path: Path, content: Any, style: Any, line: str) -> None:
    """The other file is not blamed, and the model is that of the files instead of SDXL."""
    save(tmp_path, content, style)
    done = commands.run("task=merge", "method=direct", *FILES, cwd=tmp_path)
    assert done.returncode == 2 and re.search(line, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "merged.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "style", "line"),
    [
        (GOOD, {"lora_unet_joint_blocks_0_x_block_attn_proj": (1536, 1536)},
         r"a.safetensors is a LoRA of a FLUX.1 model and \S*b.safetensors is a LoRA of an SD3 model; they cannot be"),
        (GOOD, {"lora_unet_double_blocks_0_img_attn_proj": (6144, 6144)},
         rf"b.safetensors maps 6144 to 6144 channels at \S+, and \S*a.safetensors {W} to {W}"),
    ],
)  # fmt: skip
def test_files_of_two_models_are_not_compared(
    commands: Any, tmp_path: Path, content: Any, style: Any, line: str
) -> None:
    save(tmp_path, content, style)
    done = commands.run("task=inspect", *FILES, cwd=tmp_path)
    assert done.returncode == 2 and re.search(line, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_files_of_transformer_are_inspected(commands: Any, tmp_path: Path) -> None:
    names = ("double_blocks_10_img_attn_proj", "double_blocks_9_img_attn_proj", "single_blocks_3_linear2")
    widths = {each: (5 * W if "single" in each else W, W) for each in names}
    save(tmp_path, widths, widths, "lora_unet_")
    done = commands.run("task=inspect", *FILES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "inspect.json").read_text())
    assert {each["base"] for each in report["files"]} == {"flux"} and (tmp_path / "inspect.png").exists()
    assert list(report["blocks"]) == ["transformer_blocks.9", "transformer_blocks.10", "single_transformer_blocks.3"]


@pytest.mark.parametrize(("form", "start"), [("kohya", "lora_unet_joint_blocks_0_"), ("diffusers", "transformer.")])
def test_two_sd3_files_are_merged(commands: Any, tmp_path: Path, form: str, start: str) -> None:
    width = 1536
    fused = {"lora_unet_joint_blocks_0_x_block_attn_qkv": (width, 3 * width)}
    apart = {f"transformer.transformer_blocks.0.attn.to_{part}": (width, width) for part in "qv"}
    save(tmp_path, fused, apart)
    options = [f"task.format={form}", "task.dtype=float32", "output=m.safetensors", "method=direct"]
    done = commands.run("task=merge", *FILES, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("diffusers ignores 3 of 3 layers" in done.stderr) == (form == "kohya")
    file = TensorFile(tmp_path / "m.safetensors")
    assert all(key.startswith(start) for key in file.shapes)
    assert file.metadata.get("ss_network_module") == ("networks.lora_sd3" if form == "kohya" else None)
    a, b, merged = (Adapter.load(tmp_path / f"{name}.safetensors") for name in ("a", "b", "m"))
    assert merged.layers == a.layers and len(b.layers) == 2
    for layer, each in merged.items():
        expected = a[layer].up @ a[layer].down + (b[layer].up @ b[layer].down if layer in b else 0)
        torch.testing.assert_close(each.up @ each.down, expected, rtol=1e-4, atol=1e-6)
