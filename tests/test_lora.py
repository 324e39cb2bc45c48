"""LoRAs as data: writing and reading, the alpha of diffusers' files, and the nearest LoRA of a lower rank."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from lorabench.base import UserError
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import export

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def test_saves_and_loads_same_factors(loras, tmp_path: Path) -> None:
    content, _ = loras
    content.save(tmp_path / "content.safetensors", {"concept": "mug_1"})
    loaded = LoRA.load(tmp_path / "content.safetensors")
    assert loaded.layers == content.layers and loaded.rank == 3
    for layer, factors in content.items():
        torch.testing.assert_close(loaded[layer].down, factors.down, rtol=0, atol=0)
        torch.testing.assert_close(loaded[layer].up, factors.up, rtol=0, atol=0)


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}])
def test_folds_alpha_that_diffusers_writes(loras, tmp_path: Path, extra) -> None:
    content, _ = loras
    layers = {f"{LAYER}.lora_A.weight": content[LAYER].down, f"{LAYER}.lora_B.weight": content[LAYER].up}
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, layers, unet_lora_adapter_metadata={"r": 3, "lora_alpha": 6, **extra}
    )
    loaded = LoRA.load(tmp_path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(loaded[LAYER].up, content[LAYER].up * (6 / 3**0.5 if extra else 2))


def test_alpha_pattern_beats_alpha(loras, tmp_path: Path) -> None:
    content, _ = loras
    layers = {f"{LAYER}.lora_A.weight": content[LAYER].down, f"{LAYER}.lora_B.weight": content[LAYER].up}
    metadata = {"r": 3, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 12}}
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, layers, unet_lora_adapter_metadata=metadata)
    loaded = LoRA.load(tmp_path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(loaded[LAYER].up, content[LAYER].up * 4)


def test_rank_is_highest_of_any_layer() -> None:
    def factors(rank: int) -> Factors:
        return Factors(torch.zeros(rank, 4), torch.zeros(4, rank))

    assert LoRA({"b": factors(2), "a": factors(5)}).rank == 5


@pytest.mark.parametrize("rank", [1, 3, 4, 9])
def test_compression_is_truncated_svd(rank: int) -> None:
    """Compare with the SVD of the dense updates: nearest update and norm of the discarded part (Eckart-Young)."""
    torch.manual_seed(0)
    shapes = {"a": (7, 12, 9), "b": (4, 5, 30), "c": (2, 6, 6)}
    factors = {layer: Factors(torch.randn(r, m) * 3, torch.randn(n, r)) for layer, (r, n, m) in shapes.items()}
    zero = Factors(torch.randn(4, 5), torch.zeros(6, 4))
    lora = LoRA({"a": factors["a"], "b": factors["b"], "zero": zero}, {"text_encoder.c": factors["c"]})
    small, error = lora.compressed(rank)
    lost, whole = 0.0, 0.0
    for layer, name in (("a", "a"), ("b", "b"), ("c", "text_encoder.c")):
        dense = (factors[layer].up.double() @ factors[layer].down.double()).numpy()
        u, s, vt = np.linalg.svd(dense, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        found = small.text[name] if layer == "c" else small[name]
        assert found.rank == min(rank, factors[layer].rank) and found.up.dtype == torch.float32
        np.testing.assert_allclose((found.up @ found.down).numpy(), best, atol=2e-5)
        tail = np.square(s[rank:]).sum()
        assert error.layers[name] == pytest.approx(np.sqrt(tail / np.square(s).sum()), abs=1e-9)
        lost, whole = lost + tail, whole + np.square(s).sum()
        if rank >= factors[layer].rank:
            assert found is factors[layer]
    assert error.overall == pytest.approx(np.sqrt(lost / whole), abs=1e-9) and error.layers["zero"] == 0
    assert f"relative error {error.overall:.2%}" in str(error)


def test_exported_merge_of_low_rank_compresses_without_error(loras) -> None:
    content, _ = loras
    small, error = export([content, content]).compressed(content.rank)
    assert error.overall < 1e-6 and small.rank == content.rank
    for layer, each in content.items():
        torch.testing.assert_close(small[layer].up @ small[layer].down, 2 * each.up @ each.down, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"must be at least 1; use task\.rank=8"):
        content.compressed(0)
