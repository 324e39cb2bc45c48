"""Memory counted from shapes equals that of a real forward pass; the table of SDXL's family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers_tiny import tiny_transformer

from lorabench.models.checkpointing import recomputed
from lorabench.models.conditioning import Conditioning
from lorabench.models.flux.denoiser_only import FluxDenoiserOnly
from lorabench.models.sd3.denoiser_only import SD3DenoiserOnly
from lorabench.models.sdxl.attention import set_attention
from lorabench.models.shapes import layer_map
from lorabench.tasks.memory import COLUMNS, GB, PARTS, TRAINING, Kept, count, table


def kept_by(unet: UNet2DConditionModel, device: str, checkpointing: bool) -> Kept:
    set_attention(unet, "math")
    if checkpointing:
        unet.enable_gradient_checkpointing(recomputed)
    x = torch.zeros(2, 12, 16, 16, device=device, requires_grad=True)
    prompt, t = torch.zeros(2, 7, 64, device=device), torch.zeros(2, device=device)
    added = {"text_embeds": torch.zeros(2, 32, device=device), "time_ids": torch.zeros(2, 6, device=device)}
    blocks = [each for each in unet.modules() if isinstance(each, BasicTransformerBlock | ResnetBlock2D)]
    with Kept(unet, blocks) as kept:
        unet(x, t, prompt, added_cond_kwargs=added)
    return kept


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shapes_keep_what_numbers_keep(model, checkpointing) -> None:
    with torch.device("meta"):
        empty: Any = UNet2DConditionModel.from_config(model.unet.config)
    empty.requires_grad_(False)
    real, counted = kept_by(model.unet, "cpu", checkpointing), kept_by(empty, "meta", checkpointing)
    assert counted.bytes == real.bytes > 0
    assert counted.largest == real.largest


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"), [("sd3", SD3DenoiserOnly), ("dev", FluxDenoiserOnly), ("schnell", FluxDenoiserOnly)]
)
def test_shapes_of_transformers_keep_what_numbers_keep(
    name: str, kind: Any, checkpointing: bool, tmp_path: Path
) -> None:
    model: Any = tiny_transformer(name, tmp_path)
    conditioning = model.encode_prompts(["a", "b"])

    def kept(device: str) -> Kept:
        with torch.device(device):
            network = kind(type(model.transformer).from_config(model.transformer.config), checkpointing)
        x = torch.zeros(2, *model.latent_shape, device=device, requires_grad=True)
        words = Conditioning(tuple(each.to(device) for each in conditioning.tensors))
        with Kept(network.denoiser, network.recomputed_blocks()) as found, sdpa_kernel(SDPBackend.MATH):
            network.predict(x, torch.full((2,), 500.0, device=device), words)
        return found

    real, counted = kept("cpu"), kept("meta")
    assert counted.bytes == real.bytes > 0
    assert counted.largest == real.largest


def test_what_chain_of_known_size_keeps() -> None:
    """relu keeps its output, x * x keeps x once: 100 + 100 floats; a weight does not count."""
    layer = torch.nn.Linear(10, 10)
    with Kept(layer, []) as kept:
        x = torch.ones(10, 10, requires_grad=True) + 0
        layer(torch.relu(x * x))
    assert kept.bytes == 4 * (100 + 100)


@pytest.mark.parametrize(  # docs/transformers.md has the sums
    ("name", "billions", "sums"),
    [("sd3", 2.03, (8.35, 4.87)), ("sd35_medium", 2.24, (12.8, 5.7)), ("flux", 11.90, (48.4, 27.1))],
)
def test_memory_of_transformers(name: str, billions: float, sums: tuple[float, float]) -> None:
    counts = count(name, [], 64)
    assert counts["weights"].tolist() == pytest.approx([2 * billions] * 2, rel=0.005)
    assert counts["total"].tolist() == pytest.approx(sums, rel=0.005)
    factors = sum(64 * (each.in_features + each.out_features) for each in layer_map(name).trained().values())
    assert counts["loras"].tolist() == pytest.approx([4 * factors / GB] * 2)


def test_checkpointing_keeps_fraction() -> None:
    counts: Any = count("koala_700m", ["ziplora"], 64)
    assert list(counts) == COLUMNS and list(counts["step"]) == [TRAINING] * 2 + ["ziplora"] * 2
    assert counts["total"].tolist() == pytest.approx(counts[PARTS].sum(axis=1).tolist())
    plain, recomputed = (counts[counts["checkpointing"] == each].set_index("step") for each in (False, True))
    assert plain["weights"].iloc[0] == pytest.approx(782 * 2e-3, rel=0.01)  # 782 M in bf16, its model card
    assert (recomputed["activations"] < plain["activations"] / 5).all()
    assert (recomputed["total"] < plain["total"]).all()
    assert table(counts).count("\n") == 2 + 4
    assert set(counts["targets"]) == {"attention"} and table(counts).count("| koala_700m | attention |") == 4


def test_more_layers_need_more_memory() -> None:
    """The LoRA and its optimizer grow with the layers of the set; the weights stay."""
    found: list[Any] = [count("koala_700m", [], 8, targets).iloc[0] for targets in ("attention", "all")]
    layers = [layer_map("koala_700m").trained(targets=targets).values() for targets in ("attention", "all")]
    sizes = [sum(8 * (each.in_features + each.out_features) * 4 / GB for each in own) for own in layers]
    assert [row["loras"] for row in found] == pytest.approx(sizes) and sizes[0] < sizes[1]
    assert found[0]["weights"] == found[1]["weights"] and found[0]["activations"] < found[1]["activations"]
    assert [row["targets"] for row in found] == ["attention", "all"]
