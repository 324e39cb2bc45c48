"""Our files, read by the rules of other programs. docs/files.md has the source of each rule."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import lora_conventions as conventions
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file
from test_lora_files import ATTENTION, SDXL, TEXT, linears
from torch import nn

from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors

FILE = "merged.safetensors"
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FACTOR_ENDINGS = re.compile(r"\.(lora_down|lora_up|lora_A|lora_B|lora_linear_layer\.(down|up))\.weight$|\.alpha$")


def adapter(ranks: tuple[int, ...] = (3,), layers: list[str] | None = None, text: bool = True) -> Adapter:
    """Return an adapter of every linear layer of SDXL's structure; each update is the matrix of ones for any rank."""

    def ones(names: list[str]) -> dict[str, Factors]:
        sizes = ((name, ranks[i % len(ranks)]) for i, name in enumerate(names))
        return {name: Factors(torch.ones(rank, 4), torch.full((5, rank), 1 / rank)) for name, rank in sizes}

    return Adapter(ones(linears(*SDXL) if layers is None else layers), ones(TEXT) if text else None)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def comfy_layers(keys: list[str]) -> set[str]:
    """Return the layers whose keys ComfyUI reads, by its key map (model_lora_keys_unet and _clip)."""
    known: dict[str, str] = {}
    for layer in linears(*SDXL):
        ldm = f"lora_unet_{layer.replace('.', '_')}"
        for ours, theirs in conventions.LDM_BLOCKS.items():
            ldm = ldm.replace(f"lora_unet_{ours}_", f"lora_unet_{theirs}_")
        for ours, theirs in conventions.LDM_LAYERS.items():
            ldm = ldm.replace(f"lora_unet_{ours}", f"lora_unet_{theirs}") if ldm.endswith(ours) else ldm
        processor = layer.replace(".to_", ".processor.to_").removesuffix(".0")
        plain = layer if processor == layer.removesuffix(".0") else processor
        for stem in (ldm, f"lora_unet_{layer.replace('.', '_')}", plain, f"unet.{plain}"):
            known[stem] = layer
    for layer in TEXT:
        encoder, _, path = layer.partition(".")
        path = path if path.startswith("text_") else f"text_model.{path}"
        known[f"lora_te{2 if encoder.endswith('2') else 1}_{path.replace('.', '_')}"] = layer
        known[f"{encoder}.{path}"] = layer
    return {known[stem] for key in keys if (stem := FACTOR_ENDINGS.sub("", key)) in known}


def test_comfyui_reads_every_layer_of_default_format(tmp_path: Path) -> None:
    adapter().save(tmp_path / FILE)
    assert comfy_layers(list(load_file(tmp_path / FILE))) == {*linears(*SDXL), *TEXT}


def test_comfyui_reads_no_attention_layer_of_diffusers_format(tmp_path: Path) -> None:
    """This is why diffusers' format is not the default."""
    adapter().save(tmp_path / FILE, format="diffusers")
    unread = {*linears(*SDXL), *TEXT} - comfy_layers(list(load_file(tmp_path / FILE)))
    assert {layer for layer in linears(*SDXL) if layer.endswith(ATTENTION)} <= unread


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_kohya_alpha_and_rank_give_update(tmp_path: Path, dtype: str | None) -> None:
    """Return up @ down * alpha / rank, as sd-scripts, A1111, Forge and ComfyUI compute it."""
    adapter(ranks=(1, 3, 8)).save(tmp_path / FILE, dtype=dtype)
    tensors = load_file(tmp_path / FILE)
    stems = {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}
    assert len(stems) == len(linears(*SDXL)) + len(TEXT)
    for stem in stems:
        down, up = (tensors[f"{stem}.lora_{name}.weight"].float() for name in ("down", "up"))
        update = up @ down * (tensors[f"{stem}.alpha"] / len(down))
        torch.testing.assert_close(update, torch.ones(5, 4), rtol=2e-3, atol=0)


def old_diffusers_scales(path: Path, component: str) -> dict[str, float]:
    """Return the scale of each layer in diffusers 0.35 to 0.39: peft applies `LoraConfig(**metadata)`."""
    options: dict[str, Any] = json.loads(metadata(path)["lora_adapter_metadata"])
    config = {key.removeprefix(f"{component}."): value for key, value in options.items() if key.startswith(component)}
    assert {"rank_pattern", "target_modules"} <= config.keys()  # which it reads without asking
    tensors = load_file(path)
    model = nn.Module()
    for layer in linears(*SDXL):
        *parents, name = layer.split(".")
        place = model
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.add_module(name, nn.Linear(4, 5, bias=False))
    inject_adapter_in_model(LoraConfig(**config), model, adapter_name="default")
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict) and scaling:
            found[name] = scaling["default"]
            module: Any
            assert module.r["default"] == len(tensors[f"unet.{name}.lora_A.weight"])
    return found


def test_old_diffusers_scale_mixed_ranks_by_one(tmp_path: Path) -> None:
    """Without metadata, they use the alpha of the most frequent rank for all layers."""
    layers = [layer for layer in linears(*SDXL) if ".attentions." in layer][:40]
    adapter(ranks=(1, 3, 8), layers=layers).save(tmp_path / FILE, format="diffusers")
    scales = old_diffusers_scales(tmp_path / FILE, "unet")
    assert scales.keys() == set(layers) and set(scales.values()) == {1.0}


def test_peft_metadata_names_every_component(tmp_path: Path) -> None:
    """diffusers reads the options of each text encoder with layers, without checking whether they exist."""
    adapter().save(tmp_path / FILE, format="diffusers")
    options = json.loads(metadata(tmp_path / FILE)["lora_adapter_metadata"])
    for component in ("unet", "text_encoder", "text_encoder_2"):
        assert {f"{component}.{name}" for name in ("r", "lora_alpha", "target_modules", "rank_pattern")} <= set(options)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    ("layers", "text", "sdxl"),
    [
        (None, False, True),
        ([LAYER], True, True),  # a second text encoder
        (["up_blocks.0.attentions.0.proj_in"], False, True),
        (["mid_block.attentions.0.transformer_blocks.3.ff.net.2"], False, True),
        ([LAYER], False, False),  # SD1.5 has this layer too
    ],
)
def test_a1111_shows_file_for_sdxl(tmp_path: Path, format: str, layers, text: bool, sdxl: bool) -> None:
    """A1111 hides a file with metadata unless `ss_base_model_version` starts with "sdxl_" (NetworkOnDisk)."""
    adapter(layers=layers, text=text).save(tmp_path / FILE, format=format)
    assert metadata(tmp_path / FILE).get("ss_base_model_version", "").startswith("sdxl_") == sdxl


def test_metadata_describe_file(tmp_path: Path) -> None:
    """The hash is that of the data after the header, as kohya's trainer writes and A1111 computes it."""
    adapter(ranks=(4,)).save(tmp_path / "Dog in crayon.safetensors", dtype="float16")
    notes = metadata(tmp_path / "Dog in crayon.safetensors")
    content = (tmp_path / "Dog in crayon.safetensors").read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert notes["sshs_model_hash"] == hashlib.sha256(data).hexdigest() == notes["modelspec.hash_sha256"][2:]
    assert notes["modelspec.title"] == notes["ss_output_name"] == "Dog in crayon"
    assert notes["ss_network_dim"] == notes["ss_network_alpha"] == "4"
    adapter(ranks=(4, 2)).save(tmp_path / FILE)
    assert metadata(tmp_path / FILE)["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("component", ["unet", "text"])
def test_half_precision_keeps_small_updates(tmp_path: Path, format: str, component: str) -> None:
    """alpha 1 at rank 128 and B of 1e-5: fp16 would lose 22 % of `up`."""
    torch.manual_seed(0)
    factors = Factors(torch.randn(128, 64) / 8, torch.randn(64, 128) * 1e-5 / 128)
    lost = factors.up.half().float() - factors.up
    assert lost.norm() > 0.1 * factors.up.norm()
    name = "text_encoder.encoder.layers.0.mlp.fc1"
    whole = Adapter({LAYER: factors}) if component == "unet" else Adapter({}, {name: factors})
    whole.save(tmp_path / FILE, format=format, dtype="float16")
    found = Adapter.load(tmp_path / FILE)
    found = found[LAYER] if component == "unet" else found.text[name]
    exact = factors.up @ factors.down
    assert (found.up @ found.down - exact).norm() < 1e-3 * exact.norm()


def test_half_precision_keeps_large_factors(tmp_path: Path) -> None:
    factors = Factors(torch.full((4, 8), 9e4), torch.full((8, 4), 0.05))
    Adapter({LAYER: factors}).save(tmp_path / FILE, dtype="float16")
    found = Adapter.load(tmp_path / FILE)[LAYER]
    torch.testing.assert_close(found.up @ found.down, factors.up @ factors.down, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("value", "words"), [(1e6, "reaches 1e\\+06, too large"), (1e-9, "too small for float16")])
def test_precision_that_cannot_hold_layer_is_refused(tmp_path: Path, value: float, words: str) -> None:
    factors = Factors(torch.full((4, 8), value), torch.full((8, 4), value))
    with pytest.raises(UserError, match=f"{LAYER} .*{words}.*use task.dtype=bfloat16"):
        Adapter({LAYER: factors}).save(tmp_path / FILE, dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["kohya", "diffusers", "store"])
def test_zero_updates_are_left_out(tmp_path: Path, format: str) -> None:
    other, text = LAYER.replace("to_q", "to_k"), "text_encoder.encoder.layers.0.mlp.fc1"
    zeros = {
        LAYER: Factors(torch.ones(2, 4), torch.ones(5, 2)),
        other: Factors(torch.zeros(0, 4), torch.zeros(5, 0)),
        LAYER.replace("to_q", "to_v"): Factors(torch.ones(2, 4), torch.zeros(5, 2)),
        LAYER.replace("to_q", "to_out.0"): Factors(torch.zeros(2, 4), torch.ones(5, 2)),
    }
    Adapter(zeros, {text: Factors(torch.zeros(0, 4), torch.zeros(5, 0))}).save(tmp_path / FILE, format=format)
    found = Adapter.load(tmp_path / FILE)
    assert found.layers == [LAYER] and not found.text
    with pytest.raises(UserError, match="would hold no update that is not zero"):
        Adapter({other: zeros[other]}).save(tmp_path / "empty.safetensors", format=format)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_name_longer_than_file_system_allows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must have at most 255 bytes"):
        adapter().save(tmp_path / f"{'あ' * 100}.safetensors")
