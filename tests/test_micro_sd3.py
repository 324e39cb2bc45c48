"""model=micro_sd3: its pipeline is diffusers', and it is found in the package, in the cache, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers_tiny import save_micro_sd3

from lorabench.base import UserError
from lorabench.models import files
from lorabench.models.base_weights import base_weights
from lorabench.models.files import model_files, model_folder, preset
from lorabench.models.load import load
from lorabench.models.shapes import layer_map
from lorabench.sampling.sampler import sample_latents
from pretraining.models import MICRO_SD3
from pretraining.tokens import tokenize
from pretraining.transformer import FlowLoss, build_clip_encoders, build_transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_micro_sd3(tmp_path_factory.mktemp("model") / "micro_sd3" / "pipeline")


def test_sampling_is_that_of_diffusers_without_t5(folder: Path) -> None:
    model: Any = load(model_folder(folder))
    prompts = ["a mug in ink style", "a cat"]
    done = model.pipeline(
        prompts, height=64, width=64, num_inference_steps=3, guidance_scale=3.0, latents=model.initial_noise([0, 1]),
        output_type="latent", max_sequence_length=0,
    )  # fmt: skip
    assert model.encode_prompts(prompts).tensors[0].shape == (2, 32, 64)
    found = sample_latents(model, prompts, [0, 1], 3, 3.0)
    torch.testing.assert_close(found, done.images, rtol=1e-5, atol=1e-5)


def test_pretraining_predicts_as_loaded_model(folder: Path) -> None:
    model: Any = load(model_folder(folder))
    module = MICRO_SD3.module()
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        setattr(module, part, getattr(model.pipeline, part))
    prompts, t = ["a red mug", ""], torch.tensor([900.0, 300.0])
    noisy, _ = FlowLoss().noised(model.initial_noise([0, 1]), model.initial_noise([2, 3]), t)
    with torch.no_grad():
        expected = model.predict(noisy, t, model.encode_prompts(prompts))
        found = module(noisy, t, tokenize(prompts).long())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_found_in_package_then_in_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = preset("micro_sd3")
    monkeypatch.setitem(files.TRAINED, "micro_sd3", folder)
    assert model_files(spec).path == folder and base_weights(spec) is not None
    assert set(layer_map(spec)) == set(load(model_folder("micro_sd3")).layers)
    monkeypatch.setattr(files, "ASSETS", folder.parent.parent)
    monkeypatch.setitem(files.TRAINED, "micro_sd3", Path("nowhere") / "pipeline")
    assert model_files(spec).path == folder


def test_missing_weights_are_one_line_with_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(files.TRAINED, "micro_sd3", tmp_path / "pipeline")
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    for call in (model_files, layer_map):
        with pytest.raises(UserError, match=r"no weights; .*python -m pretraining build --model micro_sd3") as error:
            call(preset("micro_sd3"))
        assert "\n" not in str(error.value)


def test_known_layers_are_those_of_built_model() -> None:
    transformer: Any = build_transformer()
    linear = {name for name, each in transformer.named_modules() if isinstance(each, torch.nn.Linear)}
    assert set(layer_map("micro_sd3").denoiser) == linear
    parts = (transformer, *build_clip_encoders())
    assert 8e6 < sum(weight.numel() for part in parts for weight in part.parameters()) < 16e6
