"""Adapters with all their parts: the store keeps them, formats write those that they can, generation uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU
from safetensors.torch import load_file, save_file

from lorabench.base import UserError
from lorabench.config.schemas import GenerateSpec
from lorabench.lora.adapter import Adapter
from lorabench.lora.export import export
from lorabench.lora.factors import Factors
from lorabench.lora.files import embeddings
from lorabench.lora.layer import attach
from lorabench.lora.masks import Masks
from lorabench.models.sdxl.model import SDXL
from lorabench.models.tokens import learned_tokens
from lorabench.sampling.generate import generate

LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
TEXT = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
FILE = "lora.safetensors"


def factors(rank: int, seed: int, scale: float = 1.0) -> Factors:
    torch.manual_seed(seed)
    return Factors(torch.randn(rank, 6), torch.randn(5, rank), scale)


def whole() -> Adapter:
    """Return an adapter with every part."""
    torch.manual_seed(3)
    return Adapter(
        {LAYER: factors(2, 0, 0.5)},
        {TEXT: factors(3, 1)},
        {"<s0>": {"text_encoder": torch.randn(2, 8), "text_encoder_2": torch.randn(2, 12)}},
        {LAYER: Masks(o=torch.rand(5), i=torch.rand(6))},
        "rank8-of-the-base",
    )


def assert_tokens(found: Adapter, expected: Adapter) -> None:
    assert found.tokens.keys() == expected.tokens.keys()
    for trigger, encoders in expected.tokens.items():
        assert found.tokens[trigger].keys() == encoders.keys()
        for encoder, vectors in encoders.items():
            assert torch.equal(found.tokens[trigger][encoder], vectors)


def test_store_keeps_every_part_bitwise(tmp_path: Path) -> None:
    adapter = whole()
    adapter.save(tmp_path / FILE, format="store")
    found = Adapter.load(tmp_path / FILE)
    for mine, other in ((found[LAYER], adapter[LAYER]), (found.text[TEXT], adapter.text[TEXT])):
        assert torch.equal(mine.down, other.down) and torch.equal(mine.up, other.up) and mine.scale == other.scale
    assert_tokens(found, adapter)
    assert found.masks[LAYER].named().keys() == {"o", "i"}
    for kind, mask in found.masks[LAYER].named().items():
        assert torch.equal(mask, adapter.masks[LAYER].named()[kind])
    assert found.backbone == "rank8-of-the-base"


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_formats_without_place_refuse_masks_and_backbone(tmp_path: Path, format: str) -> None:
    adapter = whole()
    with pytest.raises(UserError, match=f"the {format} format has no place for learned masks"):
        adapter.save(tmp_path / FILE, format=format)
    adapter.masks = {}
    with pytest.raises(UserError, match=f"the {format} format has no place for changed base weights"):
        adapter.save(tmp_path / FILE, format=format)
    assert not list(tmp_path.iterdir())


def test_store_bundles_tokens(tmp_path: Path) -> None:
    whole().save(tmp_path / FILE, format="store")
    assert {"bundle_emb.<s0>.clip_l", "bundle_emb.<s0>.clip_g"} <= load_file(tmp_path / FILE).keys()


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_tokens_are_in_file_beside_layers(tmp_path: Path, format: str) -> None:
    """diffusers 0.42 refuses a LoRA file with embeddings in it."""
    adapter = whole()
    adapter.masks, adapter.backbone = {}, None
    adapter.save(tmp_path / FILE, format=format)
    assert all("lora" in key or key.endswith(".alpha") for key in load_file(tmp_path / FILE))
    assert load_file(tmp_path / "lora_emb.safetensors").keys() == {"clip_l", "clip_g"}
    assert not Adapter.load(tmp_path / FILE).tokens
    found = Adapter.load(tmp_path / "lora_emb.safetensors")
    assert not found
    assert_tokens(found, adapter)


@pytest.mark.parametrize(
    ("tensors", "trigger", "encoders"),
    [
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "cat", ["text_encoder", "text_encoder_2"]),
        ({"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)}, "cat", ["text_encoder", "text_encoder_2"]),
        ({"emb_params": (3, 768)}, "cat", ["text_encoder"]),
        ({"emb_params": (3, 1280)}, "cat", ["text_encoder_2"]),
        ({"string_to_param.*": (1, 768)}, "cat", ["text_encoder"]),
        ({"<cat-toy>": (768,)}, "<cat-toy>", ["text_encoder"]),
        ({"<cat-toy>": (2, 1280)}, "<cat-toy>", ["text_encoder_2"]),
        ({"bundle_emb.a cat.clip_l": (1, 768)}, "a cat", ["text_encoder"]),
        ({"bundle_emb.cat.string_to_param.*": (1, 768)}, "cat", ["text_encoder"]),
    ],
)
def test_every_embedding_convention_is_read(tmp_path: Path, tensors, trigger: str, encoders: list[str]) -> None:
    values = {key: torch.randn(shape).half() for key, shape in tensors.items()}
    save_file(values, tmp_path / "cat_emb.safetensors")
    found = Adapter.load(tmp_path / "cat_emb.safetensors")
    assert not found and list(found.tokens) == [trigger] and list(found.tokens[trigger]) == encoders
    for vectors, value in zip(found.tokens[trigger].values(), values.values(), strict=True):
        assert torch.equal(vectors, value.float().reshape(-1, value.shape[-1]))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"clip_l": torch.ones(2, 3, 4)}, "of shape .2, 3, 4.; give one of shape"),
        ({"clip_l": torch.full((1, 4), float("nan"))}, "not finite"),
        ({"clip_l": torch.ones(1, 4), "text_encoders_0": torch.ones(1, 4)}, "two embeddings of 'cat'"),
    ],
)
def test_broken_embeddings_are_refused(tmp_path: Path, tensors, words: str) -> None:
    save_file(tensors, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match=words):
        Adapter.load(tmp_path / "cat.safetensors")


def test_equal_triggers_of_different_embeddings_are_renamed() -> None:
    one, two = ({"<s0>": {"text_encoder": torch.full((1, 2), value)}} for value in (1.0, 2.0))
    together = embeddings.joined([one, two, one, {"<s1>": one["<s0>"]}])
    assert list(together) == ["<s0>", "<s0>_2", "<s1>"]
    assert torch.equal(together["<s0>_2"]["text_encoder"], two["<s0>"]["text_encoder"])


def test_export_joins_parts() -> None:
    first = whole()
    second = Adapter({LAYER: factors(1, 7)}, tokens={"<s1>": first.tokens["<s0>"]}, backbone=first.backbone)
    merged = export([first, second])
    assert list(merged.tokens) == ["<s0>", "<s1>"] and merged.backbone == first.backbone and not merged.masks
    masked, other = first.masks[LAYER].masked(first[LAYER]), second[LAYER]
    expected = masked.up @ masked.down + other.up @ other.down
    torch.testing.assert_close(merged[LAYER].up @ merged[LAYER].down, expected)


def test_learned_masks_apply_in_joint_use_only(model: SDXL) -> None:
    layer, module = next((name, each) for name, each in model.unet.named_modules() if name.endswith("attn1.to_q"))
    torch.manual_seed(0)
    width = module.in_features
    mine = Factors(torch.randn(2, width), torch.randn(width, 2))
    adapter = Adapter({layer: mine}, masks={layer: Masks(o=torch.zeros(width))})
    nothing = Adapter({layer: Factors(torch.zeros(1, width), torch.zeros(width, 1))})
    x = torch.randn(1, 3, width)
    plain = module(x)
    with attach(model.unet, [adapter]):
        torch.testing.assert_close(model.unet.get_submodule(layer)(x), plain + x @ mine.down.T @ mine.up.T)
    with attach(model.unet, [adapter, nothing]):
        torch.testing.assert_close(model.unet.get_submodule(layer)(x), plain)


def test_adapters_of_different_backbones_are_refused() -> None:
    with pytest.raises(UserError, match=r"different base weights \(rank8-of-the-base, the plain model\)"):
        export([whole(), Adapter({LAYER: factors(1, 7)})])


def known_vectors(model: SDXL, words: str) -> dict[str, torch.Tensor]:
    """Return the vectors of known words by text encoder."""
    ids = model.pipeline.tokenizer(words).input_ids[1:-1]
    return {name: getattr(model.pipeline, name).get_input_embeddings().weight[ids].clone() for name in model.text}


def test_trigger_reads_as_its_vectors(model: SDXL) -> None:
    """A trigger with the vectors of two known words is encoded like these words; afterwards the model is unchanged."""
    vectors = known_vectors(model, "red mug")
    expected, before = model.encode_prompts(["a red mug"]), model.encode_prompts(["a <s0>"])
    with model.attach_text([Adapter({}, tokens={"<s0>": vectors})]):
        found = model.encode_prompts(["a <s0>"])
    after = model.encode_prompts(["a <s0>"])
    for mine, other, first, last in zip(found.tensors, expected.tensors, before.tensors, after.tensors, strict=True):
        assert torch.equal(mine, other) and torch.equal(first, last)
    assert not torch.equal(before.tensors[0], expected.tensors[0])


def test_learned_tokens_are_generated_with(model: SDXL) -> None:
    vectors = known_vectors(model, "red mug")
    spec = GenerateSpec(images=1, steps=2, guidance=2.0, batch=1)
    learned = generate(model, [Adapter({}, tokens={"<s0>": vectors})], ["a <s0>"], [3], spec, CPU)
    assert np.array_equal(learned, generate(model, [], ["a red mug"], [3], spec, CPU))
    assert not np.array_equal(learned, generate(model, [], ["a <s0>"], [3], spec, CPU))


def test_embedding_of_another_width_is_refused(model: SDXL) -> None:
    with (
        pytest.raises(UserError, match="'<s0>' has 5 numbers and text_encoder 32"),
        learned_tokens(model.pipeline, {"<s0>": {"text_encoder": torch.ones(1, 5)}}),
    ):
        pass
