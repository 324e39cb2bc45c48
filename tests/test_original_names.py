"""Files of SD3 and FLUX.1 in kohya's names: written and read again, and read by diffusers' converter."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors.torch import load_file
from torch import Tensor
from transformers_tiny import tiny_transformer

from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.lora.files import names, transformer_names
from lorabench.lora.files.formats import lost_in_diffusers
from lorabench.lora.files.original_names import grouped
from lorabench.lora.files.tensors import TensorFile
from lorabench.models.shapes import layer_map

MODELS = {"flux": 314, "flux_schnell": 312, "sd3": 244, "sd35_medium": 270, "sd35_large": 384}  # original layers
NARROW = 32  # widths are those of the model divided by this
DOUBLE, SINGLE = "transformer_blocks.0.attn", "single_transformer_blocks.3"
W = 3072  # of FLUX.1, which diffusers' converter expects


def random(rank: int, inputs: int, outputs: int, size: float = 1.0) -> Factors:
    return Factors(torch.randn(rank, inputs) / inputs**0.5, size * torch.randn(outputs, rank))


def whole(model: str) -> Adapter:
    """Return an adapter of all layers of a model with ranks of 1 to 3, in narrow."""
    torch.manual_seed(0)
    layers = layer_map(model)
    random_factors = {
        name: random(1 + place % 3, each.in_features // NARROW, each.out_features // NARROW)
        for place, (name, each) in enumerate([*layers.denoiser.items(), *layers.text.items()])
    }
    text = {name: random_factors.pop(name) for name in layers.text}
    return Adapter(random_factors, text)


def saved(adapter: Adapter, tmp_path: Path, **options: Any) -> tuple[Adapter, dict[str, Tensor]]:
    adapter.save(tmp_path / "lora.safetensors", format="kohya", **options)
    return Adapter.load(tmp_path / "lora.safetensors"), load_file(tmp_path / "lora.safetensors")


def assert_same(found: Adapter, expected: Adapter) -> None:
    assert found.layers == expected.layers and found.text.keys() == expected.text.keys()
    for layer, each in [*expected.items(), *expected.text.items()]:
        again = found[layer] if layer in found else found.text[layer]
        torch.testing.assert_close(again.up @ again.down, each.up @ each.down, rtol=1e-5, atol=1e-5)
        assert again.rank == each.rank


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_is_written_in_original_names(model: str, tmp_path: Path) -> None:
    adapter = whole(model)
    again, tensors = saved(adapter, tmp_path)
    assert_same(again, adapter)
    stems = {key.partition(".")[0] for key in tensors}
    denoiser = {stem.removeprefix("lora_unet_") for stem in stems if stem.startswith("lora_unet_")}
    assert len(denoiser) == MODELS[model] and len(stems) == len(denoiser) + len(adapter.text)
    assert not any("transformer_blocks" in stem or "time_text_embed" in stem for stem in denoiser)
    for stem in stems:
        down, up, alpha = (tensors[f"{stem}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert len(down) == up.shape[1] == alpha


@pytest.mark.parametrize("adapted", [("attn.to_q",), ("attn.to_k", "attn.to_v"), ("attn.to_v", "proj_mlp")])
def test_parts_of_fused_layer_without_lora_are_zero(adapted: tuple[str, ...], tmp_path: Path) -> None:
    """A zero update is exact, and the reader takes such a part as not adapted, as it was before."""
    torch.manual_seed(0)
    widths = {"attn.to_q": 8, "attn.to_k": 8, "attn.to_v": 8, "proj_mlp": 32}
    adapter = Adapter({f"{SINGLE}.{name}": random(2, 8, widths[name]) for name in adapted})
    again, tensors = saved(adapter, tmp_path)
    assert_same(again, adapter)
    up = tensors["lora_unet_single_blocks_3_linear1.lora_up.weight"]
    assert up.shape == (56, 2 * len(adapted))
    rows = {"attn.to_q": up[:8], "attn.to_k": up[8:16], "attn.to_v": up[16:24], "proj_mlp": up[24:]}
    assert {name for name, each in rows.items() if each.any()} == set(adapted)
    zero = {f"{SINGLE}.{name}": random(2, 8, width, size=0) for name, width in widths.items() if name not in adapted}
    again, tensors = saved(Adapter({**adapter, **zero}), tmp_path)
    assert_same(again, adapter)
    assert torch.equal(tensors["lora_unet_single_blocks_3_linear1.lora_up.weight"], up)


def test_parts_with_same_down_keep_their_rank(tmp_path: Path) -> None:
    torch.manual_seed(0)
    down = torch.randn(4, 8)
    adapter = Adapter({f"{DOUBLE}.to_{part}": Factors(down, torch.randn(8, 4)) for part in "qkv"})
    again, tensors = saved(adapter, tmp_path)
    assert_same(again, adapter)
    [key] = [key for key in tensors if key.endswith("lora_down.weight")]
    assert torch.equal(tensors[key], down)


def test_small_parts_are_not_lost_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"q": 1e-6, "k": 1.0, "v": 1e3}
    adapter = Adapter({f"{DOUBLE}.to_{part}": random(4, 8, 8, size) for part, size in sizes.items()})
    again, _ = saved(adapter, tmp_path, dtype="float16")
    for layer, each in adapter.items():
        error = (again[layer].up @ again[layer].down - each.up @ each.down).norm() / (each.up @ each.down).norm()
        assert error < 1e-3


def test_diverged_or_unknown_layers_are_one_line(tmp_path: Path) -> None:
    good = {f"{DOUBLE}.to_{part}": random(4, 8, 8) for part in "qk"}
    broken = {f"{DOUBLE}.to_v": Factors(torch.full((4, 8), torch.nan), torch.ones(8, 4))}
    with pytest.raises(UserError, match=r"unet\.joint_blocks_0_x_block_attn_qkv has values that are not finite"):
        saved(Adapter({**good, **broken}), tmp_path)
    with pytest.raises(UserError, match=r"no name for transformer_blocks.0.attn.nothing; use task.format=diffusers"):
        saved(Adapter({**good, f"{DOUBLE}.nothing": random(4, 8, 8)}), tmp_path)


def test_flux_file_is_read_by_diffusers_converter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = {name: each for name, each in layer_map("flux").items()
              if re.match(r"(single_)?transformer_blocks\.(0|18)\.", name) or "blocks" not in name}  # fmt: skip
    text = dict([*layer_map("flux").text.items()][:6])
    factors = {
        name: random(1 + place % 3, each.in_features, each.out_features)
        for place, (name, each) in enumerate([*layers.items(), *text.items()])
    }
    adapter = Adapter({name: factors[name] for name in layers}, {name: factors[name] for name in text})
    _, tensors = saved(adapter, tmp_path)
    assert TensorFile(tmp_path / "lora.safetensors").metadata["ss_network_module"] == "networks.lora_flux"
    found: dict[str, Tensor] = _convert_kohya_flux_lora_to_diffusers(tensors)
    stems = {key: re.sub(r"\.lora_A\.weight$", "", key) for key in found if key.endswith(".lora_A.weight")}
    for key, stem in stems.items():
        each = factors[stem.removeprefix("transformer.")]
        x = torch.randn(each.down.shape[1], 3)
        theirs = found[key.replace("lora_A", "lora_B")] @ (found[key] @ x)
        torch.testing.assert_close(theirs, each.up @ (each.down @ x), rtol=1e-4, atol=1e-4)
    assert {stem.removeprefix("transformer.") for stem in stems.values()} == set(layers)
    outside = [name for name in layers if "blocks" not in name]
    assert lost_in_diffusers(adapter.parts, "kohya") == sorted(outside) and not lost_in_diffusers(
        adapter.parts, "store"
    )
    assert {stem for stem in stems.values() if not stem.startswith("transformer.")} == set(outside)  # and dropped
    theirs = [key for key in found if key.startswith("text_encoder.") and ".up." in key]
    dense = [found[key] @ found[key.replace(".up.", ".down.")] for key in theirs]
    assert len(dense) == len(adapter.text)
    for each in adapter.text.values():  # diffusers' names of these layers are those before 0.22
        assert any(update.shape == (each.up @ each.down).shape and torch.allclose(update, each.up @ each.down, 0, 1e-4)
                   for update in dense)  # fmt: skip


def test_sd3_file_is_ignored_by_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The note is wrong when diffusers has learned to read such files."""
    model: Any = tiny_transformer("sd3", tmp_path)
    torch.manual_seed(0)
    adapter = Adapter({name: random(2, each.in_features, each.out_features) for name, each in model.layers.items()})
    saved(adapter, tmp_path)
    count = len(adapter)
    assert f"lora.safetensors: diffusers ignores {count} of {count} layers" in capsys.readouterr().err
    assert TensorFile(tmp_path / "lora.safetensors").metadata["ss_network_module"] == "networks.lora_sd3"
    pipeline = deepcopy(model.pipeline)
    pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    assert not any("lora" in name for name, _ in pipeline.transformer.named_parameters())
    assert lost_in_diffusers(adapter.parts, "kohya") == adapter.layers


WORDS = re.compile(
    r"double_blocks|single_blocks|joint_blocks|x_block|context_block|context_embedder|[ty]_embedder|img_attn|txt_attn"
    r"|img_mlp|txt_mlp|img_mod|txt_mod|img_in|txt_in|time_in|vector_in|guidance_in|in_layer|out_layer|final_layer"
    r"|adaLN_modulation|[a-z]+\d?|\d+"
)


def dotted(name: str) -> str:
    """Return an original name as it is in the original code."""
    found = ".".join(WORDS.findall(name))
    assert found.replace(".", "_") == name
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_spelling_of_every_layer_is_known(model: str) -> None:
    adapter = whole(model)

    def layers_of(stem: str) -> list[str]:
        layer = names.layer(stem)
        return [layer] if layer else list(transformer_names.layers(stem))

    for layer in adapter:
        flat = layer.replace(".", "_")
        stems = [f"{prefix}{layer}" for prefix in ("", "transformer.", "base_model.model.", "unet.", "diffusion_model.",
                                                   "base_model.model.transformer.")]  # fmt: skip
        stems += [f"{prefix}{flat}" for prefix in ("lora_transformer_", "lora_unet_", "lycoris_")]
        for stem in stems:
            assert layers_of(stem) == [f"unet.{layer}"], stem
    for name, parts in grouped(adapter.parts).items():
        prefixes = ("", "diffusion_model.", "base_model.model.", "transformer.")
        for stem in [f"lora_unet_{name}", f"lycoris_{name}", *(f"{prefix}{dotted(name)}" for prefix in prefixes)]:
            assert set(layers_of(stem)) == {f"unet.{layer}" for layer in parts}, stem
        if name.endswith("attn_qkv"):
            for part, layer in zip("qkv", parts, strict=True):
                [found] = layers_of(f"lora_unet_{name.removesuffix('qkv')}{part}")
                assert found.removeprefix("unet.") in parts and re.search(rf"(to|add)_{part}\b|add_{part}_", found), (
                    layer
                )
