"""SD3 and FLUX.1 against diffusers: layers, sampling, guidance, gradients and runs."""

from __future__ import annotations

import json
import re
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers_tiny import save_flux, save_sd3

from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.models.files import ModelFiles, model_folder, preset
from lorabench.models.flux.model import pack, unpack
from lorabench.models.layer_map import LayerMap
from lorabench.models.load import load
from lorabench.models.model import DiffusionModel
from lorabench.sampling.rule import Branch
from lorabench.sampling.sampler import sample_latents

PROMPTS = ["a dog in szn", "a dog"]
UNZIP = ["method=unziplora", "dataset=microworld_stylised", "dataset.count=1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    return {
        "sd3": save_sd3(root / "sd3"),
        "dev": save_flux(root / "dev"),
        "schnell": save_flux(root / "schnell", guidance=False),
    }


@pytest.fixture(params=["sd3", "dev", "schnell"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(folders: dict[str, Path], name: str) -> DiffusionModel:
    return load(files(folders[name]))


def files(folder: Path) -> ModelFiles:
    """Return the files of a model at 16 pixels; the default of FLUX.1 is 128 latents wide."""
    return replace(model_folder(folder), resolution=16)


def random_lora(layers: LayerMap, rank: int = 2) -> Adapter:
    rng = torch.Generator().manual_seed(1)
    return Adapter(
        {
            name: Factors(
                0.3 * torch.randn(rank, layer.in_features, generator=rng),
                0.3 * torch.randn(layer.out_features, rank, generator=rng),
            )
            for name, layer in layers.trained(targets="all").items()
        }
    )


def linear_layers(module: nn.Module) -> dict[str, tuple[int, int]]:
    linear = ((name, each) for name, each in module.named_modules() if isinstance(each, nn.Linear))
    return {name: (each.in_features, each.out_features) for name, each in linear}


def test_layer_map_is_that_of_modules(model: DiffusionModel) -> None:
    assert {name: (each.in_features, each.out_features) for name, each in model.layers.items()} == linear_layers(
        model.denoiser
    )
    text = {name: module for name, module in model.text.named_modules() if isinstance(module, nn.Linear)}
    other = (
        "text_encoder_projection"
        if model.layers.text.keys() & {"text_encoder_2.text_projection"}
        else "text_encoder_2."
    )
    assert set(model.layers.text) == {name for name in text if not name.startswith(other)}
    depths = [layer.depth for layer in model.layers.trained().values()]
    assert (depths[0], depths[-1]) == (1.0, 0.0) and depths == sorted(depths, reverse=True)


@pytest.mark.parametrize("form", ["kohya", "diffusers", "store"])
def test_file_of_transformer_is_read_again(folders: dict[str, Path], form: str, tmp_path: Path) -> None:
    lora = random_lora(load(files(folders["sd3"])).layers)
    lora.save(tmp_path / "lora.safetensors", format=form)
    again = Adapter.load(tmp_path / "lora.safetensors")
    assert again.layers == lora.layers
    assert all(torch.equal(again[name].up @ again[name].down, each.up @ each.down) for name, each in lora.items())
    start = "lora_unet_joint_blocks_" if form == "kohya" else "transformer."
    with safe_open(tmp_path / "lora.safetensors", framework="pt") as file:
        assert all(key.startswith(start) for key in file.keys())  # noqa: SIM118


def pipeline_latents(
    model: Any, name: str, steps: int, guidance: float, lora: Adapter | None, tmp_path: Path, **options: Any
) -> Tensor:
    """Sample the prompts with diffusers' own pipeline, from the noise of seeds 0 and 1, with its `options`."""
    pipeline: Any = deepcopy(model.pipeline)
    noise = model.initial_noise([0, 1])
    if lora is not None:
        tensors = {f"transformer.{layer}.lora_A.weight": each.down for layer, each in lora.items()}
        tensors |= {f"transformer.{layer}.lora_B.weight": each.up for layer, each in lora.items()}
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "lora.safetensors")
        pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    edge = model.resolution
    done = pipeline(
        PROMPTS, height=edge, width=edge, num_inference_steps=steps, guidance_scale=guidance,
        latents=noise if name == "sd3" else pack(noise), output_type="latent", **options,
    )  # fmt: skip
    return done.images if name == "sd3" else unpack(done.images, *model.latent_shape[1:])


@pytest.mark.parametrize("adapted", [False, True])
def test_sampling_is_that_of_diffusers(folders: dict[str, Path], name: str, adapted: bool, tmp_path: Path) -> None:
    model: Any = load(files(folders[name]))
    guidance = {"sd3": 4.0, "dev": 3.5, "schnell": 1.0}[name]
    lora = random_lora(model.layers) if adapted else None
    expected = pipeline_latents(model, name, 3, guidance, lora, tmp_path)
    with model.attach([lora] if lora else []) as adapters:
        found = sample_latents(model, PROMPTS, [0, 1], 3, guidance, adapters if lora else None)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.3, "max_image_seq_len": 300},
        {"use_dynamic_shifting": False, "shift": 2.0, "shift_terminal": 0.1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
    ],
)
@pytest.mark.parametrize("which", ["sd3", "dev"])
def test_levels_of_every_scheduler_setting_are_those_of_diffusers(
    folders: dict[str, Path], which: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / which
    shutil.copytree(folders[which], folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    model: Any = load(files(folder))
    plain = load(files(folders[which])).sampler(4).timesteps
    expected = pipeline_latents(model, which, 4, 3.5, None, tmp_path)
    found = sample_latents(model, PROMPTS, [0, 1], 4, 3.5)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    if which == "sd3" or settings != {"use_dynamic_shifting": True}:  # FLUX.1 dev has this setting
        assert not torch.allclose(model.sampler(4).timesteps, plain, rtol=1e-2)


def test_text_encoders_of_sd3_are_adapted_as_by_diffusers(folders: dict[str, Path], tmp_path: Path) -> None:
    """The first encoder's layers are below `text_model` in the module and in files, and not in an adapter."""
    model: Any = load(files(folders["sd3"]))
    rng = torch.Generator().manual_seed(2)
    text = {
        name: Factors(
            0.3 * torch.randn(2, layer.in_features, generator=rng), torch.randn(layer.out_features, 2, generator=rng)
        )
        for name, layer in model.layers.trained_text().items()
    }
    assert len(text) == 2 * 2 * 4
    lora = Adapter(random_lora(model.layers), text)
    lora.save(tmp_path / "lora.safetensors", format="diffusers")
    again = Adapter.load(tmp_path / "lora.safetensors")
    assert set(again.text) == set(text)
    plain = model.encode_prompts(PROMPTS).tensors
    found = model.encode_prompts(PROMPTS, [again]).tensors
    pipeline: Any = deepcopy(model.pipeline)
    pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    states, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    for ours, theirs, before in zip(found, (states, pooled), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert (ours - before).abs().max() > 1e-2
    assert all(torch.equal(a, b) for a, b in zip(model.encode_prompts(PROMPTS).tensors, plain, strict=True))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("negative", ["", "a dog"])
def test_true_guidance_is_that_of_diffusers(
    folders: dict[str, Path], adapted: bool, negative: str, tmp_path: Path
) -> None:
    model: Any = load(replace(files(folders["dev"]), true_guidance=True))
    assert model.guidance == "cfg"
    lora = random_lora(model.layers) if adapted else None
    options = {"negative_prompt": [negative] * 2, "true_cfg_scale": 2.5}
    expected = pipeline_latents(model, "dev", 3, 1.0, lora, tmp_path, **options)
    with model.attach([lora] if lora else []) as adapters:
        found = sample_latents(model, PROMPTS, [0, 1], 3, 2.5, adapters if lora else None, negative=negative)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_rows_carry_their_own_scales(model: DiffusionModel) -> None:
    lora = random_lora(model.layers)
    xt, t = model.initial_noise([0, 1]), torch.tensor([700.0, 300.0])
    conditioning = model.encode_prompts(PROMPTS)
    plain = model.predict(xt, t, conditioning)
    with model.attach([lora]) as adapters:
        adapters.rows({name: torch.tensor([[0.0], [1.0]]) for name in adapters.layers})
        mixed = model.predict(xt, t, conditioning)
        adapters.rows({name: torch.tensor([[1.0]]) for name in adapters.layers})
        whole = model.predict(xt, t, conditioning)
    assert torch.allclose(mixed[0], plain[0], atol=1e-5) and torch.allclose(mixed[1], whole[1], atol=1e-5)
    assert (whole - plain).abs().max() > 1e-3


def test_checkpointing_keeps_gradients(folders: dict[str, Path], name: str) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        model = load(replace(files(folders[name]), checkpointing=checkpointing))
        with model.attach([random_lora(model.layers)]) as adapters:
            for layer in adapters.layers.values():
                layer.up.requires_grad_(True)
            adapters.rows({name: torch.tensor([[0.5], [1.0]]) for name in adapters.layers})
            loss = model.predict(model.initial_noise([0, 1]), torch.tensor([500.0]), model.encode_prompts(PROMPTS)).pow(
                2
            )
            adapters.rows({name: torch.tensor([[0.0]]) for name in adapters.layers})
            loss.sum().backward()
            return [layer.up.grad for layer in adapters.layers.values() if layer.up.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert plain and all(torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(plain, again, strict=True))


def test_methods_that_sum_predictions_need_true_guidance(folders: dict[str, Path]) -> None:
    model = load(files(folders["dev"]))
    branches = [Branch(-1.0, (1.0,), None), Branch(2.0, (1.0,), "prompt")]
    with model.attach([random_lora(model.layers)]) as adapters, pytest.raises(UserError, match="true_guidance"):
        sample_latents(model, PROMPTS, [0, 1], 2, 2.0, adapters, None, branches)
    with pytest.raises(UserError, match=r"generate\.guidance=3 has no effect"):
        sample_latents(load(files(folders["schnell"])), PROMPTS, [0, 1], 2, 3.0)
    with pytest.raises(UserError, match="joint attention"):
        model.predict(model.initial_noise([0]), torch.tensor(1.0), model.encode_prompts(["a"]), own=[])


@pytest.mark.parametrize(
    ("which", "overrides", "message"),
    [
        ("dev", ["method=lora_composite"], "lora_composite sums predictions .* use model.true_guidance=true"),
        ("schnell", ["method=direct"], "generate.guidance=3 has no effect"),
        ("sd3", ["method=direct", "lora.min_snr=5"], "use lora.min_snr=null"),
        ("dev", ["method=direct", "lora.blocks=[blocks.7]"], "lora.blocks=blocks.7 has no layer"),
        ("sd3", UNZIP, r"own prompt, .*; use ablation=no_prompt_separation method\.dedicated=depth, or an SDXL model"),
        ("dev", UNZIP, r"own prompt, .*; use ablation=no_prompt_separation method\.dedicated=depth, or an SDXL model"),
        ("dev", [*UNZIP, "method/sampling=plain"], "gives each LoRA its own prompt"),
        ("sd3", [*UNZIP, "method=direct", "method/sampling=three_prompts"], "use ablation=no_prompt_separation, or"),
    ],
)
def test_unsupported_settings_are_refused_before_training(
    folders: dict[str, Path],
    commands: Any,
    tiny: list[str],
    tmp_path: Path,
    which: str,
    overrides: list[str],
    message: str,
) -> None:
    arguments = [*overrides, "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", f"output={tmp_path}"]
    done = commands.run(*tiny, f"model.path={folders[which]}", *arguments)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("store/personalize/*"))


def test_latents_are_scaled_as_diffusers_does(model: Any) -> None:
    images = torch.rand(2, 3, model.resolution, model.resolution) * 2 - 1
    code = model.vae.encode(images).latent_dist.mode()
    expected = (code - model.vae.config.shift_factor) * model.vae.config.scaling_factor
    assert torch.equal(model.encode_images(images), expected)
    decoded = model.vae.decode(code).sample / 2 + 0.5
    assert torch.allclose(model.decode(expected), decoded.clamp(0, 1), atol=1e-5)


def test_folders_are_checked(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_sd3(folder)
    assert model_folder(folder).family.name == "sd3"
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "Flux2Pipeline"}))
    with pytest.raises(UserError, match="Flux2Pipeline, which is not supported"):
        model_folder(folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    settings = folder / "scheduler" / "scheduler_config.json"
    known = json.loads(settings.read_text())
    for wrong, message in (
        ({"stochastic_sampling": True}, "stochastic_sampling: true; use false"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas and use_beta_sigmas; use one"),
        ({"time_shift_type": "cubic"}, "time_shift_type: cubic; use exponential"),
        ({"num_train_timesteps": 500}, "num_train_timesteps: 500; use 1000"),
    ):
        settings.write_text(json.dumps({**known, **wrong}))
        with pytest.raises(UserError, match=message):
            model_folder(folder)
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match="incomplete folder of an SD3 model without vae"):
        model_folder(folder)


def test_presets_fill_every_setting() -> None:
    assert (preset("flux_schnell").checkpointing, preset("flux_schnell").name) == (True, "flux_schnell")
    assert (preset("flux_schnell").steps, preset("flux_schnell").guidance) == (4, 1.0)
    assert (preset("koala_1b").steps, preset("koala_1b").guidance) == (50, 5.0)
    assert preset("sd35_large").path == "stabilityai/stable-diffusion-3.5-large"
    assert isinstance(ModelFiles(Path("x"), Path("y"), true_guidance=True).numbers()["true_guidance"], bool)


def test_whole_run(folders: dict[str, Path], commands: Any, tiny: list[str], tmp_path: Path) -> None:
    """Train LoRAs, learn masks by the cycle, sample and score with a flow-matching transformer."""
    overrides = [f"model.path={folders['sd3']}", "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]"]
    done = commands.run(
        *tiny, *overrides, "method=duolora", "method.fit.steps=2", "lora.timesteps=logit_normal", "lora.loss=x0",
        "lora.text_encoders=true", "lora.targets=script", f"output={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| duolora |" in done.stdout
    run = tmp_path / "adhoc" / "duolora-none-s0"
    assert json.loads((run / "manifest.json").read_text())["targets"] == "script"
    notes = (run / "table.md").read_text()
    assert "LoRAs are trained on the layers of lora.targets=script." in notes
    assert "duolora: the layer prior is by depth, ours: content in the first half of the blocks" in notes
    assert Adapter.load(next((run / "merged").glob("*.safetensors"))).metadata["lorabench.targets"] == "script"


@pytest.mark.parametrize("which", ["sd3", "dev"])
def test_unziplora_runs_with_offered_settings(
    folders: dict[str, Path], commands: Any, tiny: list[str], tmp_path: Path, which: str
) -> None:
    """The words that its refusal offers: one prompt for all, and blocks dedicated by depth."""
    done = commands.run(
        *tiny, *UNZIP, f"model.path={folders[which]}", "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]",
        "ablation=no_prompt_separation", "method.dedicated=depth", "model.resolution=16",
        f"output={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| unziplora no_prompt_separation |" in done.stdout


def test_unziplora_generates_from_files_with_offered_ablation(
    folders: dict[str, Path], commands: Any, tmp_path: Path
) -> None:
    random_lora(load(files(folders["dev"])).layers).save(tmp_path / "a.safetensors")
    given = ["content=a.safetensors", "style=a.safetensors", "prompt=a sks dog in szn style", "method=unziplora"]
    settings = ["model=flux", f"model.path={folders['dev']}", "model.resolution=16", "model.dtype=fp32",
                "generate.images=1", "generate.steps=2"]  # fmt: skip
    done = commands.run("task=generate", *given, *settings, "ablation=no_prompt_separation", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "generated" / "00.png").is_file()
