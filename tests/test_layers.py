"""Layer maps from configurations against models; groups, and LoRAs that do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build_koala
from torch import nn

from lorabench.base import UserError
from lorabench.lora.adapter import Factors, LoRA
from lorabench.models.files import model_folder, preset
from lorabench.models.layer import Layer
from lorabench.models.layer_map import LayerMap
from lorabench.models.sdxl.model import SDXL
from lorabench.models.shapes import KNOWN, empty_model, layer_map
from lorabench.tasks.recognition import fitting

ROLES = ("content", "style")


@pytest.fixture(params=["tiny", "koala_1b", "koala_700m"])
def any_model(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> SDXL:
    return SDXL.load(folder) if request.param == "tiny" else build_koala(tmp_path, request.param == "koala_1b")


def linears(module: nn.Module) -> dict[str, tuple[int, int]]:
    found = {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear)}
    return {name: (each.in_features, each.out_features) for name, each in found.items()}


def test_map_has_every_linear_layer_of_live_model_in_order_of_its_forward_pass(any_model: SDXL) -> None:
    layers = any_model.layers
    assert {name: (each.in_features, each.out_features) for name, each in layers.items()} == linears(any_model.unet)
    assert {name: (each.in_features, each.out_features) for name, each in layers.text.items()} == linears(
        any_model.text
    )
    run: list[str] = []
    for root in (any_model.unet, any_model.text):
        for name, module in root.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda *_, name=name: run.append(name))
    prompt = any_model.encode_prompts(["a mug"])
    with torch.no_grad():
        any_model.predict(torch.zeros(1, *any_model.latent_shape), torch.tensor([500]), prompt)
    assert run == [*layers.text, *layers]


@pytest.mark.parametrize("name", KNOWN)
def test_known_maps_are_those_of_their_configurations(name: str) -> None:
    model = empty_model(name)
    assert {path: (each.in_features, each.out_features) for path, each in layer_map(name).items()} == linears(
        model.denoiser
    )
    assert model.layers.denoiser == layer_map(name).denoiser


def test_map_of_files_is_map_of_loaded_model(any_model: SDXL, folder: Path) -> None:
    path = Path(any_model.pipeline.config["_name_or_path"])
    assert layer_map(model_folder(path)) == any_model.layers == layer_map(preset(path))


@pytest.mark.parametrize("name", ["sdxl", "koala_1b", "koala_700m"])
def test_presets_on_hub_are_known_without_connection(name: str) -> None:
    layers = layer_map(preset(name))
    assert layers == layer_map(name)
    attention = len(layers.trained_text())
    assert attention == 4 * (12 + 32) and len(layers.text) == 6 * (12 + 32) + 1  # CLIP-L, OpenCLIP bigG


def test_depth_is_resolution_between_finest_and_coarsest_with_attention() -> None:
    layers = layer_map("sdxl")
    fine = {name.split(".attentions")[0] for name, layer in layers.trained().items() if layer.depth == 0}
    assert fine == {"down_blocks.1", "up_blocks.1"} and {each.depth for each in layers.trained().values()} == {0.0, 1.0}
    assert layers["time_embedding.linear_1"].depth == 0.5 and layers["down_blocks.0.resnets.0.time_emb_proj"].depth == 0
    assert "mid_block" not in layer_map("koala_700m").blocks and "mid_block" in layer_map("koala_1b").blocks


def test_blocks_are_named_in_order() -> None:
    layers = layer_map("sdxl")
    names = [layers.block_of(name) for name in list(layers.trained())[::8]]
    assert names == ["down 1"] * 4 + ["down 2"] * 20 + ["mid"] * 10 + ["up 0"] * 30 + ["up 1"] * 6
    assert layers.block_of("time_embedding.linear_1") == "time_embedding"
    assert list(dict.fromkeys(map(layers.transformer_block_of, layers.trained()))) == list(layers.transformer_blocks)
    shuffled = sorted(layers, reverse=True)
    assert layers.in_order(shuffled) == list(layers)


def test_block_is_exact_path() -> None:
    names = ["blocks.1.to_q", "blocks.10.to_q", "single_blocks.1.to_q", "blocks.1.norm"]
    layers = LayerMap(
        {name: Layer(name, 1, 1) for name in names}, attention=frozenset(names[:3]), modules=("blocks.1", "blocks.10"),
        targets={"all": frozenset(names)},
    )  # fmt: skip
    assert list(layers.trained(["blocks.1"])) == ["blocks.1.to_q"]
    with pytest.raises(
        UserError, match=r"^lora\.blocks=blocks\.7 has no layer to adapt; use one of blocks.1, blocks.10$"
    ):
        layers.trained(["blocks.7"])
    with pytest.raises(
        UserError, match=r"^lora\.blocks=blocks\.1\.norm has no layer of lora.targets=attention; use lora.targets=all$"
    ):
        layers.trained(["blocks.1.norm"])


def test_loras_alone_give_map_of_first_known_model_that_they_fit(loras) -> None:
    found = {}
    for name in ("sdxl", "koala_1b", "koala_700m", "micro"):
        layers = layer_map(name).trained()
        lora = LoRA(
            {
                path: Factors(torch.zeros(1, each.in_features), torch.zeros(each.out_features, 1))
                for path, each in layers.items()
            }
        )
        found[name] = layer_map([lora])
        assert fitting(lora) == name.replace("koala_1b", "sdxl").replace("koala_700m", "sdxl")
    assert all(found[name] == layer_map(name) for name in ("sdxl", "micro"))
    assert found["koala_1b"] == layer_map("sdxl")  # KOALA's layers are some of SDXL's, with the same widths
    with pytest.raises(UserError, match=r"the LoRAs fit none of the known models .*; use model\.path="):
        layer_map(loras)
    assert fitting(loras[0]) == "<its model>"


def test_loras_that_do_not_fit_name_layer(model: SDXL, loras) -> None:
    adapted = model.layers.adapted(loras, ROLES)
    assert list(adapted) == sorted(model.layers.trained()) and {each.ranks for each in adapted.values()} == {(3, 2)}
    first = next(iter(loras[0]))
    wide = LoRA({first: Factors(torch.zeros(1, 99), loras[0][first].up[:, :1])})
    with pytest.raises(UserError, match=rf"maps 99 to \d+ channels at {first}, the model \d+ to \d+; give a LoRA"):
        model.layers.adapted([wide], ["content"])
    with pytest.raises(UserError, match=r"the LoRA adapts text_encoder\.nothing, which is not a linear layer here"):
        model.layers.adapted([LoRA({}, {"text_encoder.nothing": loras[0][first]})], ["content"])


def test_unknown_block_types_are_refused(folder: Path, tmp_path: Path) -> None:
    from lorabench.models.known import denoiser_config
    from lorabench.models.sdxl.layers import layers_of

    with pytest.raises(UserError, match="a UNet with AttnDownBlock2D is not of SDXL's family"):
        layers_of(
            {**denoiser_config("sdxl"), "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]}, {}
        )


def test_layer_maps_need_no_torch() -> None:
    code = "import sys; from lorabench.models.shapes import layer_map; layer_map('sdxl'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
