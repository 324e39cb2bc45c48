"""The same file in diffusers' loader and in ours: equal outputs of UNet and text encoders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lora_conventions as conventions
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from lora_conventions import Triples
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from lorabench.base import seed_of
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import Masks, export
from lorabench.models.sdxl.model import SDXL

ATTENTION = r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$"
TRANSFORMERS = (
    r"\.attentions\.|^text"  # the layers of kohya's trainer; diffusers garbles its own names of the embeddings
)
ADAPTED = {"processors": ATTENTION, "kohya": TRANSFORMERS}


def linears(model: SDXL) -> dict[str, nn.Linear]:
    parts = {
        "unet": model.unet,
        "text_encoder": model.pipeline.text_encoder,
        "text_encoder_2": model.pipeline.text_encoder_2,
    }
    return {
        f"{part}.{name}": layer
        for part, module in parts.items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name != "text_projection"
    }


def draw(model: SDXL, name: str, alpha: float | None = None, ranks=(3,), only: str = "") -> Triples:
    """Return factors that change the output visibly, for linear layers that match the pattern `only`."""
    triples = {}
    for layer, module in linears(model).items():
        if re.search(only, layer) is None:
            continue
        chance = torch.Generator().manual_seed(seed_of(name, layer))
        rank = ranks[seed_of(name, layer) % len(ranks)]
        down = torch.randn(rank, module.in_features, generator=chance) * 0.2
        triples[layer] = (down, torch.randn(module.out_features, rank, generator=chance) * 0.2, alpha)
    return triples


def lora_of(triples: Triples) -> LoRA:
    factors = {layer: Factors(down, up) for layer, (down, up, _) in triples.items()}
    text = {layer: each for layer, each in factors.items() if not layer.startswith("unet.")}
    return LoRA({layer.removeprefix("unet."): factors[layer] for layer in factors.keys() - text.keys()}, text)


@torch.no_grad()
def outputs(model: SDXL) -> list[Tensor]:
    """Return the UNet's prediction and both encoders' outputs with the active adapters."""
    embeds, _, pooled, _ = model.pipeline.encode_prompt("a mug in halftone style", do_classifier_free_guidance=False)
    chance = torch.Generator().manual_seed(2)
    sample = torch.randn(2, model.unet.config.in_channels, 16, 16, generator=chance)
    added = {"text_embeds": pooled.repeat(2, 1), "time_ids": model.whole_image(2)}
    t = torch.tensor([10, 600])
    predicted = model.unet(sample, t, embeds.repeat(2, 1, 1), added_cond_kwargs=added, return_dict=False)[0]
    return [predicted, embeds, pooled]


def theirs(folder: Path, file: Path) -> list[Tensor]:
    model = SDXL.load(folder)
    model.pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    return outputs(model)


def ours(folder: Path, file: Path) -> list[Tensor]:
    model, lora = SDXL.load(folder), LoRA.load(file)
    layers = linears(model)
    with torch.no_grad():
        for layer, factors in lora.text.items():
            layers[layer].weight += factors.up @ factors.down
    with model.attach([lora]):
        return outputs(model)


def assert_same(found: list[Tensor], expected: list[Tensor], bare: list[Tensor] | None = None) -> None:
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)
    for mine, without in zip(found, bare or [], strict=False):
        assert (mine - without).abs().max() > 1e-2  # the adapters matter at all


@pytest.mark.parametrize("name", ["peft", "peft_live", "diffusers_lora", "processors", "kohya", "kohya_ldm"])
def test_every_convention_loads_as_in_diffusers(folder: Path, model: SDXL, tmp_path: Path, name: str) -> None:
    triples = draw(model, name, alpha=1.5, only=ADAPTED.get(name, ""))
    save_file(conventions.ALL[name](triples), tmp_path / "lora.safetensors")
    assert_same(
        ours(folder, tmp_path / "lora.safetensors"), theirs(folder, tmp_path / "lora.safetensors"), outputs(model)
    )


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    ("only", "ranks"),
    [
        ("", (1, 2, 5)),
        ("fc[12]|unet.*to_q", (2, 3)),
        (r"up_blocks\.0\.attentions\.[01]", (4,)),
        (r"proj_in|time_embedding|up_blocks\.1\.attentions\.0|down_blocks\.2\.attentions\.0", (4,)),
    ],
)
def test_what_we_write_diffusers_reads(
    folder: Path, tmp_path: Path, model: SDXL, format: str, only: str, ranks
) -> None:
    """Test different ranks by layer, encoders with adapted MLPs only, a B-LoRA, and layers that KOALA has, too."""
    lora = lora_of(draw(model, "written", ranks=ranks, only=only))
    lora.save(tmp_path / "lora.safetensors", format=format)
    expected, found = (load(folder, tmp_path / "lora.safetensors") for load in (ours, theirs))
    assert_same(found, expected, outputs(model)[: 3 if lora.text else 1])


def test_alphas_that_differ_by_layer(folder: Path, model: SDXL, tmp_path: Path) -> None:
    """diffusers 0.42 drops them ("alpha_pattern keys did not match"), so compare with the file with alphas folded."""
    drawn = draw(model, "alphas", ranks=(2, 4), only=TRANSFORMERS)
    alphas = {layer: float(i % 3 + 1) for i, layer in enumerate(drawn)}
    triples: Triples = {layer: (a, b, alphas[layer]) for layer, (a, b, _) in drawn.items()}
    folded: Triples = {layer: (a, b * (alphas[layer] / len(a)), None) for layer, (a, b, _) in drawn.items()}
    save_file(conventions.kohya_ldm(triples), tmp_path / "kohya.safetensors")
    save_file(conventions.diffusers_lora(folded), tmp_path / "folded.safetensors")
    assert_same(ours(folder, tmp_path / "kohya.safetensors"), theirs(folder, tmp_path / "folded.safetensors"))


def test_kohya_files_of_diffusers_own_converter(model: SDXL, tmp_path: Path) -> None:
    """Alphas in diffusers are integers, and with transformers 5 the first encoder has no `text_model`."""
    triples = draw(model, "converted", ranks=(2, 4))
    expected = lora_of(triples)
    tensors = convert_state_dict_to_kohya(conventions.keyed(triples, str, ".lora_A.weight", ".lora_B.weight"))
    assert any(key.startswith("lora_te1_encoder_layers_0_") for key in tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    found = LoRA.load(tmp_path / "lora.safetensors")
    assert found.layers == expected.layers and found.text.keys() == expected.text.keys()
    for mine, other in [*zip(found.values(), expected.values(), strict=True),
                        *zip(found.text.values(), expected.text.values(), strict=True)]:  # fmt: skip
        assert torch.equal(mine.down, other.down) and torch.equal(mine.up, other.up)


@pytest.mark.parametrize("rslora", [False, True])
def test_file_of_peft_adapters_with_their_config(folder: Path, tmp_path: Path, rslora: bool) -> None:
    """Compare adapters that a training script has saved with the network that they were saved from."""
    trained = SDXL.load(folder)
    pipeline = trained.pipeline
    common: Any = {"init_lora_weights": False, "use_rslora": rslora}
    configs = {
        "unet": LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_k", "to_v", "to_out.0"],
                           rank_pattern={"attn1.to_q": 2}, alpha_pattern={"attn2.to_k": 11}, **common),
        "text_encoder": LoraConfig(r=2, lora_alpha=7, target_modules=["q_proj", "fc1"], **common),
        "text_encoder_2": LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "out_proj"], **common),
    }  # fmt: skip
    layers, metadata = {}, {}
    torch.manual_seed(0)
    for name, config in configs.items():
        getattr(pipeline, name).add_adapter(config)
        state = get_peft_model_state_dict(getattr(pipeline, name), adapter_name="default")
        layers[f"{name}_lora_layers"] = state if name == "unet" else convert_state_dict_to_diffusers(state)
        metadata[f"{name}_lora_adapter_metadata"] = config.to_dict()
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **layers, **metadata)
    bare = outputs(SDXL.load(folder))
    assert_same(ours(folder, tmp_path / "pytorch_lora_weights.safetensors"), outputs(trained), bare)


def test_exported_and_compressed_merge_in_diffusers(folder: Path, model: SDXL, tmp_path: Path) -> None:
    loras = [lora_of(draw(model, name, ranks=(rank,), only=ATTENTION)) for name, rank in (("content", 3), ("style", 2))]
    torch.manual_seed(0)
    masks = {layer: (Masks(r=torch.rand(3)), Masks(r=torch.tensor([1.0, 0.0]))) for layer in loras[0]}
    merged = export(loras, masks)
    compressed, error = LoRA(merged, merged.text).compressed(4)  # a rank of five, of which one mask is zero
    assert max(error.layers[layer] for layer in merged) < 1e-6 < max(error.layers[layer] for layer in merged.text)
    merged.save(tmp_path / "merged.safetensors", format="kohya")
    LoRA(compressed, merged.text).save(tmp_path / "compressed.safetensors")
    for name in ("merged", "compressed"):
        assert_same(theirs(folder, tmp_path / f"{name}.safetensors"), ours(folder, tmp_path / "merged.safetensors"))
