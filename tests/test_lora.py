"""LoRA files: read back what was written, fold alpha in, refuse anything else in one line."""

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import save_file

from lorabench.errors import UserError
from lorabench.lora import Factors, LoRA

SITE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def test_saves_and_loads_the_same_factors(loras, tmp_path: Path) -> None:
    content, _ = loras
    content.save(tmp_path / "content.safetensors", {"concept": "mug_1"})
    loaded = LoRA.load(tmp_path / "content.safetensors")
    assert loaded.sites == content.sites and loaded.rank == 3
    for site, factors in content.items():
        torch.testing.assert_close(loaded[site].down, factors.down, rtol=0, atol=0)
        torch.testing.assert_close(loaded[site].up, factors.up, rtol=0, atol=0)


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}])
def test_folds_the_alpha_that_diffusers_writes(loras, tmp_path: Path, extra) -> None:
    content, _ = loras
    layers = {f"{SITE}.lora_A.weight": content[SITE].down, f"{SITE}.lora_B.weight": content[SITE].up}
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, layers, unet_lora_adapter_metadata={"r": 3, "lora_alpha": 6, **extra}
    )
    loaded = LoRA.load(tmp_path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(loaded[SITE].up, content[SITE].up * (6 / 3**0.5 if extra else 2))


def test_an_alpha_pattern_beats_the_alpha(loras, tmp_path: Path) -> None:
    content, _ = loras
    layers = {f"{SITE}.lora_A.weight": content[SITE].down, f"{SITE}.lora_B.weight": content[SITE].up}
    metadata = {"r": 3, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 12}}
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, layers, unet_lora_adapter_metadata=metadata)
    loaded = LoRA.load(tmp_path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(loaded[SITE].up, content[SITE].up * 4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    with pytest.raises(UserError, match="cannot be read"):
        LoRA.load(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(UserError, match="cannot be read"):
        LoRA.load(path)
    save_file({"lora_unet_mid_block.alpha": torch.ones(1)}, path)
    with pytest.raises(UserError, match="diffusers' format"):
        LoRA.load(path)
    save_file({f"unet.{SITE}.lora_A.weight": torch.ones(1, 2)}, path)
    with pytest.raises(UserError, match="one of the two factors"):
        LoRA.load(path)


def test_rank_is_the_highest_of_any_site() -> None:
    def factors(rank: int) -> Factors:
        return Factors(torch.zeros(rank, 4), torch.zeros(4, rank))

    assert LoRA({"b": factors(2), "a": factors(5)}).rank == 5
