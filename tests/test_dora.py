"""DoRA files are folded if the base weights are on this machine, else refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from lorabench import merge
from lorabench.base import UserError
from lorabench.lora.factors import Factors
from lorabench.lora.files.dora import difference
from lorabench.models.sdxl.model import SDXL

LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k"
TEXT = "text_encoder.encoder.layers.0.mlp.fc1"
FILE_TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
KOHYA = {LAYER: "lora_unet_up_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k",
         TEXT: "lora_te1_text_model_encoder_layers_0_mlp_fc1"}  # fmt: skip


def weight(model: SDXL, layer: str) -> Tensor:
    network = model.text if layer.startswith("text") else model.unet
    return network.get_parameter(f"{layer}.weight").detach().float()


def by_peft(weight: Tensor, down: Tensor, up: Tensor, alpha: float, magnitude: Tensor) -> Tensor:
    """Return the dense update of a DoRA as peft merges it."""
    base = nn.Sequential()
    base.add_module("layer", nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    base.layer.weight.data = weight.clone()  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    model = get_peft_model(base, LoraConfig(r=len(down), lora_alpha=alpha, target_modules=["layer"], use_dora=True))  # pyright: ignore[reportArgumentType]
    module = model.base_model.model.layer  # pyright: ignore[reportAttributeAccessIssue]
    module.lora_A["default"].weight.data, module.lora_B["default"].weight.data = down, up  # pyright: ignore
    module.lora_magnitude_vector["default"].weight.data = magnitude  # pyright: ignore
    module.merge()  # pyright: ignore
    return module.base_layer.weight.detach() - weight  # pyright: ignore


def parts(weight: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    out, width = weight.shape
    down, up = torch.randn(3, width, generator=rng), 0.1 * torch.randn(out, 3, generator=rng)
    return down, up, weight.norm(dim=1) * (1 + 0.2 * torch.randn(out, generator=rng))


@pytest.mark.parametrize("spelling", ["kohya", "peft"])
def test_dora_is_folded_as_in_peft(
    model: SDXL, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spelling: str
) -> None:
    tensors, expected = {}, {}
    for seed, (layer, stem) in enumerate(KOHYA.items()):
        down, up, magnitude = parts(weight(model, layer), seed)
        expected[layer] = by_peft(weight(model, layer), down, up, 1.5, magnitude)
        if spelling == "kohya":
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha":
                        torch.tensor(1.5), f"{stem}.dora_scale": magnitude[:, None].contiguous()}  # fmt: skip
        else:
            path = FILE_TEXT if layer == TEXT else f"unet.{layer}"
            tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up * 0.5,
                        f"{path}.lora_magnitude_vector": magnitude}  # fmt: skip
    save_file(tensors, tmp_path / "dora.safetensors")
    plain = {f"{KOHYA[LAYER]}.lora_{part}.weight": torch.ones(shape) for part, shape in
             (("down", (1, weight(model, LAYER).shape[1])), ("up", (weight(model, LAYER).shape[0], 1)))}  # fmt: skip
    save_file(plain, tmp_path / "plain.safetensors")
    merged = merge(tmp_path / "dora.safetensors", tmp_path / "plain.safetensors", model=folder)
    found = {LAYER: merged[LAYER].up @ merged[LAYER].down - 1, TEXT: merged.text[TEXT].up @ merged.text[TEXT].down}
    for layer, update in expected.items():  # the layers are narrower than the rank, so nothing is cut
        torch.testing.assert_close(found[layer], update, rtol=1e-4, atol=1e-5)
    assert "DoRA folded into a LoRA of rank 64, relative error 0.00%" in capsys.readouterr().err


def test_magnitudes_of_inputs_scale_columns() -> None:
    """Older LyCORIS: m [1, in], with the norm of each column."""
    rng = torch.Generator().manual_seed(0)
    base, down, up = (torch.randn(shape, generator=rng) for shape in ((4, 6), (2, 6), (4, 2)))
    m = torch.rand(1, 6, generator=rng)
    v = base + up @ down
    expected = torch.stack([m[0, j] * v[:, j] / v[:, j].norm() for j in range(6)], dim=1) - base
    torch.testing.assert_close(difference(Factors(down, up), m, base, outputs=False), expected)


def test_kernel_of_convolution_has_one_magnitude_per_output() -> None:
    rng = torch.Generator().manual_seed(0)
    base, down, up = (torch.randn(shape, generator=rng) for shape in ((4, 2, 3, 3), (2, 18), (4, 2)))
    m = torch.rand(4, 1, 1, 1, generator=rng)
    v = base.flatten(1) + up @ down
    expected = torch.stack([m[i, 0, 0, 0] * v[i] / v[i].norm() for i in range(4)]) - base.flatten(1)
    torch.testing.assert_close(difference(Factors(down, up), m, base, outputs=False), expected)


@pytest.mark.parametrize("magnitude", [torch.ones(5, 1), torch.full((16, 1), float("nan"))])
def test_magnitudes_that_do_not_fit_are_refused(model: SDXL, folder: Path, tmp_path: Path, magnitude: Tensor) -> None:
    out, width = weight(model, LAYER).shape
    assert out == 16
    save_file({f"{KOHYA[LAYER]}.lora_down.weight": torch.ones(1, width), f"{KOHYA[LAYER]}.lora_up.weight":
               torch.ones(out, 1), f"{KOHYA[LAYER]}.dora_scale": magnitude}, tmp_path / "dora.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=r"has magnitudes of shape \[\d+, 1\] at .*, not \d+ finite numbers; download"):
        merge(tmp_path / "dora.safetensors", tmp_path / "dora.safetensors", model=folder)


def test_dora_without_base_weights_is_refused(tmp_path: Path) -> None:
    save_file({f"{KOHYA[LAYER]}.lora_down.weight": torch.ones(1, 4), f"{KOHYA[LAYER]}.lora_up.weight": torch.ones(4, 1),
               f"{KOHYA[LAYER]}.dora_scale": torch.ones(4, 1)}, tmp_path / "dora.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=r"is a DoRA .*use model\.path=<diffusers folder or checkpoint") as error:
        merge(tmp_path / "dora.safetensors", tmp_path / "dora.safetensors")
    assert "\n" not in str(error.value)
