"""LoRA files: all naming conventions are read, two are written, and no number changes."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import lora_conventions as conventions
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from lora_conventions import Triples
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lorabench.base import UserError
from lorabench.lora.adapter import LoRA
from lorabench.lora.factors import Factors
from lorabench.lora.files import names
from lorabench.lora.layer import export
from pretraining.architecture import build_unet

FILE = "lora.safetensors"
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
TEXT = [
    f"{prefix}.layers.{layer}.{module}"
    for prefix in ("text_encoder.encoder", "text_encoder_2.text_model.encoder")
    for layer in (0, 11)
    for module in (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
] + ["text_encoder_2.text_projection"]


@cache
def linears(layers_per_block: int, depths: Any) -> list[str]:
    """Return every linear layer of a UNet with SDXL's blocks: (2, (0, 2, 10)) is SDXL, (1, (0, 2, 6)) is KOALA-1B."""
    with torch.device("meta"):
        if layers_per_block == 2:
            unet = build_unet((8, 8, 8), (1, 1, 1), depths, 16, 8)
        else:
            unet = UNet2DConditionModel(
                block_out_channels=(8, 8, 8), layers_per_block=1, transformer_layers_per_block=depths,
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=8,
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
                addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
            )  # fmt: skip
    return [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)]


SDXL, KOALA = (2, (1, 2, 10)), (1, (1, 2, 6))


def draw(seed: int, allowed: set[str] | None = None, alphas: bool = True) -> Triples:
    """Return random factors of any layers, ranks and alphas, as files may have them."""
    chance = random.Random(seed)
    layers = [f"unet.{layer}" for layer in linears(*SDXL)] + TEXT
    chosen = chance.sample([layer for layer in layers if allowed is None or layer in allowed], chance.randint(5, 60))
    chosen.append("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    torch.manual_seed(seed)
    triples: Triples = {}
    for layer in sorted(set(chosen)):
        rank, width, height = (chance.randint(1, most) for most in (9, 20, 20))
        alpha = chance.choice([1.0, 4.0, 6.5, 64.0, float(rank)]) if alphas else None
        triples[layer] = torch.randn(rank, width), torch.randn(height, rank), alpha
    return triples


def lora_of(triples: Triples, alphas: bool = True) -> LoRA:
    """Return the update in a file by the definition of alpha."""
    factors = {
        layer: Factors(down, up if alpha is None or not alphas else up * (alpha / len(down)))
        for layer, (down, up, alpha) in triples.items()
    }
    return LoRA(
        {layer.removeprefix("unet."): each for layer, each in factors.items() if layer.startswith("unet.")},
        {layer: each for layer, each in factors.items() if not layer.startswith("unet.")},
    )


def assert_same(found: LoRA, expected: LoRA, rtol: float = 0.0) -> None:
    assert found.layers == expected.layers and list(found.text) == list(expected.text)
    pairs = [(found[layer], each) for layer, each in expected.items()]
    for mine, other in pairs + [(found.text[layer], each) for layer, each in expected.text.items()]:
        assert mine.down.dtype == mine.up.dtype == torch.float32
        torch.testing.assert_close(mine.down, other.down, rtol=rtol, atol=0)
        torch.testing.assert_close(mine.up, other.up, rtol=rtol, atol=0)


def shuffled(tensors: dict, seed: int) -> dict:
    keys = list(tensors)
    random.Random(seed).shuffle(keys)
    return {key: tensors[key] for key in keys}


def allowed(convention: str) -> set[str] | None:
    """Return the layers for which a convention has names."""
    everywhere = [f"unet.{layer}" for layer in linears(*SDXL)] + TEXT
    if convention in conventions.UNET_ONLY:
        everywhere = [layer for layer in everywhere if layer.startswith("unet.")]
    if convention in conventions.ATTENTION_ONLY:
        everywhere = [layer for layer in everywhere if layer.endswith(ATTENTION)]
    if convention == "comfy":
        everywhere = [layer for layer in everywhere if ".attentions." in layer]
    return set(everywhere)


@pytest.mark.parametrize("convention", conventions.ALL)
@pytest.mark.parametrize("seed", range(6))
def test_every_convention_is_read(tmp_path: Path, convention: str, seed: int) -> None:
    """Test any ranks, alphas and missing layers, in any order of keys."""
    triples = draw(seed, allowed(convention))
    save_file(shuffled(conventions.ALL[convention](triples), seed), tmp_path / FILE)
    assert_same(LoRA.load(tmp_path / FILE), lora_of(triples, convention in conventions.WITH_ALPHA))


@pytest.mark.parametrize("second", ["diffusers", "kohya"])
@pytest.mark.parametrize("first", ["diffusers", "kohya"])
@pytest.mark.parametrize("seed", range(4))
def test_formats_turn_into_each_other_and_back(tmp_path: Path, first: str, second: str, seed: int) -> None:
    """Values are bitwise equal, except for one rounding if ranks differ, because kohya's format has one alpha."""
    lora = lora_of(draw(seed))
    lora.save(tmp_path / "a.safetensors", {"made": "here"}, format=first)
    LoRA.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors", format=second)
    ranks_differ = len({each.rank for each in [*lora.values(), *lora.text.values()]}) > 1
    assert_same(LoRA.load(tmp_path / "b.safetensors"), lora, 1e-6 if "kohya" in (first, second) and ranks_differ else 0)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["made"] == "here"


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_equal_ranks_come_back_bitwise(tmp_path: Path, format: str) -> None:
    lora = lora_of({layer: (torch.randn(7, 5), torch.randn(6, 7), None) for layer in draw(0)})
    lora.save(tmp_path / FILE, format=format)
    assert_same(LoRA.load(tmp_path / FILE), lora)


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 2**-10), ("bfloat16", 2**-7)])
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_half_precision_rounds_once(tmp_path: Path, format: str, dtype: str, rtol: float) -> None:
    lora = lora_of({"unet.mid_block.attentions.0.proj_in": (torch.rand(300, 5) + 1, torch.rand(6, 300) + 1, None)})
    lora.save(tmp_path / FILE, format=format, dtype=dtype)
    stored = {key: each.dtype for key, each in load_file(tmp_path / FILE).items() if not key.endswith("alpha")}
    assert set(stored.values()) == {getattr(torch, dtype)}
    assert_same(LoRA.load(tmp_path / FILE), lora, rtol)


def test_alpha_is_folded_in_before_rounding(tmp_path: Path) -> None:
    """In fp16, 1e-7 has one significant bit, and a hundredth of it is zero."""
    tensors = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(100, 2),
               "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.full((2, 100), 1e-7),
               "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0)}  # fmt: skip
    save_file({key: each.half() for key, each in tensors.items()}, tmp_path / FILE)
    up = LoRA.load(tmp_path / FILE)["mid_block.attentions.0.proj_in"].up
    torch.testing.assert_close(up, torch.full((2, 100), 1e-7).half().float() / 100)
    assert (up > 0).all()


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_lora_is_not_written(tmp_path: Path, value: float, dtype: str | None) -> None:
    lora = lora_of({"unet.mid_block.attentions.0.proj_in": (torch.ones(1, 2), torch.full((2, 1), value), None)})
    with pytest.raises(UserError, match=r"proj_in has values .*the training diverged; use a smaller lora\.lr"):
        lora.save(tmp_path / FILE, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_number_that_half_precision_cannot_hold_is_named(tmp_path: Path) -> None:
    lora = lora_of({"unet.mid_block.attentions.0.proj_in": (torch.full((1, 2), 1e6), torch.full((2, 1), 1e6), None)})
    with pytest.raises(UserError, match="1e\\+06, too large for float16"):
        lora.save(tmp_path / FILE, dtype="float16")
    with pytest.raises(UserError, match="must be kohya or diffusers"):
        lora.save(tmp_path / FILE, format="lycoris")
    with pytest.raises(UserError, match="must be one of float32, float16, bfloat16"):
        lora.save(tmp_path / FILE, dtype="int8")
    assert not (tmp_path / FILE).exists()
    with pytest.raises(UserError, match=r"cannot be written.*use a path"):
        lora.save(tmp_path / "nowhere" / FILE)


@pytest.mark.parametrize(("structure", "ldm"), [(SDXL, True), (SDXL, False), (KOALA, False)])
def test_every_linear_layer_has_one_name(structure, ldm: bool) -> None:
    """Underscored and dotted names are inverse to each other on every layer."""
    assert names.ldm_is_safe(linears(*structure)) == (structure == SDXL)
    layers = [f"unet.{layer}" for layer in linears(*structure)] + TEXT
    assert len(layers) > (700 if structure == SDXL else 200)
    stems = [names.kohya_stem(layer, ldm) for layer in layers]
    assert len(set(stems)) == len(stems) and [names.layer(stem) for stem in stems] == layers


def test_koala_by_ldm_block_numbers(tmp_path: Path) -> None:
    """With one ResNet a down block, its attentions are input blocks 3 and 5 and output blocks 0 to 3."""
    places = {
        "input_blocks_3_1": "down_blocks.1.attentions.0", "input_blocks_5_1": "down_blocks.2.attentions.0",
        "middle_block_1": "mid_block.attentions.0", "output_blocks_0_1": "up_blocks.0.attentions.0",
        "output_blocks_1_1": "up_blocks.0.attentions.1", "output_blocks_2_1": "up_blocks.1.attentions.0",
        "output_blocks_3_1": "up_blocks.1.attentions.1",
    }  # fmt: skip
    tensors = {}
    for place in places:
        tensors[f"lora_unet_{place}_proj_in.lora_down.weight"] = torch.ones(1, 2)
        tensors[f"lora_unet_{place}_proj_in.lora_up.weight"] = torch.ones(2, 1)
    save_file(tensors, tmp_path / FILE)
    layers = LoRA.load(tmp_path / FILE).layers
    assert layers == sorted(f"{layer}.proj_in" for layer in places.values())
    assert set(layers) <= set(linears(*KOALA))


@pytest.mark.parametrize(
    ("layers", "block"),
    [
        (["up_blocks.0.attentions.0", "up_blocks.0.attentions.1"], "output_blocks_1_1"),  # a B-LoRA
        (["down_blocks.1.attentions.1", "up_blocks.1.attentions.0"], "output_blocks_3_1"),  # SDXL for certain
        (["down_blocks.1.attentions.0", "up_blocks.1.attentions.0"], "up_blocks_1_attentions_0"),  # may be a KOALA
    ],
)
def test_block_numbers_are_written_where_they_are_certain(tmp_path: Path, layers: list[str], block: str) -> None:
    ones = Factors(torch.ones(1, 2048), torch.ones(2, 1))
    lora = LoRA({f"{layer}.transformer_blocks.0.attn2.to_k": ones for layer in layers})
    lora.save(tmp_path / FILE, format="kohya")
    assert any(key.startswith(f"lora_unet_{block}_") for key in load_file(tmp_path / FILE))
    assert_same(LoRA.load(tmp_path / FILE), lora)
    with safe_open(tmp_path / FILE, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"


def test_factors_in_shape_of_convolution_are_matrices(tmp_path: Path) -> None:
    triples = draw(1, alphas=False)
    tensors = {key: each[..., None, None].contiguous() for key, each in conventions.kohya(triples).items()}
    save_file(tensors, tmp_path / FILE)
    assert_same(LoRA.load(tmp_path / FILE), lora_of(triples))


def test_config_beside_peft_file_counts(tmp_path: Path) -> None:
    triples = draw(2, allowed("base_model"), alphas=False)
    save_file(conventions.base_model(triples), tmp_path / "adapter_model.safetensors")
    bare = lora_of(triples)
    assert_same(LoRA.load(tmp_path), bare)
    config = {"lora_alpha": 6, "use_rslora": True, "alpha_pattern": {"mid_block.+to_q": 2}, "r": 8, "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = LoRA.load(tmp_path / "adapter_model.safetensors")
    for layer, each in bare.items():
        alpha = 2 if layer.startswith("mid_block") and layer.endswith("to_q") else 6
        torch.testing.assert_close(found[layer].up, each.up * alpha / each.rank**0.5)
    for wrong in ("no json", '{"lora_alpha": "six"}', '{"alpha_pattern": {"*": 1}}', "[1]"):
        (tmp_path / "adapter_config.json").write_text(wrong)
        with pytest.raises(UserError, match=r"peft config that cannot be read.*write it again"):
            LoRA.load(tmp_path / "adapter_model.safetensors")


def test_export_carries_text_encoders(tmp_path: Path) -> None:
    """The merge is the sum of the updates, with concatenated factors."""

    def factors(rank: int, name: int) -> Factors:
        torch.manual_seed(name)
        return Factors(torch.randn(rank, 4), torch.randn(5, rank))

    both, first_only, second_only = TEXT[0], TEXT[-1], TEXT[-2]
    unet = {"mid_block.attentions.0.proj_in": factors(1, 0)}
    first = LoRA(unet, {both: factors(3, 1), first_only: factors(1, 2)})
    second = LoRA(unet, {both: factors(2, 3), second_only: factors(2, 4)})
    export([first, second]).save(tmp_path / FILE)
    found = LoRA.load(tmp_path / FILE).text
    assert {layer: each.rank for layer, each in found.items()} == {both: 5, first_only: 1, second_only: 2}
    for layer, each in found.items():
        parts = [lora.text[layer] for lora in (first, second) if layer in lora.text]
        torch.testing.assert_close(each.up @ each.down, torch.stack([part.up @ part.down for part in parts]).sum(0))
    assert list(first.svd().text) == list(first.text)


@pytest.mark.parametrize("format", ["store", "kohya", "diffusers"])
def test_equal_adapters_give_equal_files(tmp_path: Path, format: str) -> None:
    """Metadata may have characters that are not ASCII or that JSON escapes."""
    adapter = LoRA(
        {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": Factors(torch.ones(2, 8), torch.ones(8, 2))}
    )
    files = [tmp_path / name / "merged.safetensors" for name in "ab"]
    for file in files:
        file.parent.mkdir()
        adapter.save(file, {f"note {i}": 'über "日本"\n\\' for i in range(9)}, format=format)
    assert files[0].read_bytes() == files[1].read_bytes()
