"""Models from folders and single files, in several precisions, with less memory; other models are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ldm import save_single_file, tiny_pipeline
from safetensors.torch import load_file, save_file

from lorabench.base import UserError
from lorabench.config.schemas import ModelSpec
from lorabench.engine.store import Store
from lorabench.models.files import ModelFiles, model_files, model_folder
from lorabench.models.sdxl.model import SDXL
from lorabench.models.shapes import layer_map
from lorabench.sampling.sampler import sample_latents

SPEC = ModelSpec(
    name="test", path="micro", config="nowhere/nowhere", vae=None, variant=None, dtype="fp32", vae_dtype="fp32",
    resolution=None, attention="auto", offload="none", checkpointing=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    """Return the same weights as a folder and as a single file."""
    root = tmp_path_factory.mktemp("single")
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(root / "folder")
    save_single_file(pipeline, root / "model.safetensors")
    return root / "folder", root / "model.safetensors"


def draw(model: SDXL) -> torch.Tensor:
    return sample_latents(model, ["a dog"], [1], 2, 3.0)


def test_single_file_is_same_model_as_its_folder(both) -> None:
    folder, file = both
    files = model_files(replace(SPEC, path=str(file), config=str(folder)))
    ours, theirs = SDXL.load(files), SDXL.load(folder)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected, found = (getattr(model.pipeline, part).state_dict() for model in (theirs, ours))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), part
    assert torch.equal(draw(ours), draw(theirs))


def test_file_that_model_does_not_use_changes_no_digest(both, tmp_path: Path) -> None:
    """Add another variant that is downloaded later, a model card, and weights in another format."""
    store, folder = Store(tmp_path / "store"), tmp_path / "model"
    shutil.copytree(both[0], folder)

    def digest(**settings: str) -> str:
        return store.digest(*model_files(replace(SPEC, path=str(folder), **settings)).sources())

    before = digest()
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        [weights] = (folder / part).glob("*.safetensors")
        (folder / part / f"{weights.stem}.fp16.safetensors").write_bytes(weights.read_bytes()[:-2] + b"12")
        (folder / part / f"{weights.stem}.fp16.safetensors.index.json").write_text("{}")
        (folder / part / f"{weights.stem}.bin").write_bytes(b"a pickle")
    (folder / "sd_xl_base.safetensors").write_bytes(b"a whole checkpoint")
    (folder / "README.md").write_text("a model card")
    assert digest() == before != digest(variant="fp16")


@pytest.mark.parametrize(
    "name", ["model_index.json", "scheduler/scheduler_config.json", "tokenizer_2/tokenizer.json", "unet/config.json"]
)
def test_every_file_that_model_uses_is_in_its_digest(both, tmp_path: Path, name: str) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "model"
    shutil.copytree(both[0], folder)
    files = model_files(replace(SPEC, path=str(folder)))
    before = store.digest(*files.sources())
    (folder / name).write_text((folder / name).read_text() + " ")
    assert store.digest(*files.sources()) != before
    assert {file.name for file in files.sources()} >= {"diffusion_pytorch_model.safetensors", "model.safetensors"}


def test_single_file_in_half_precision_keeps_its_autoencoder_whole(both) -> None:
    folder, file = both
    model = SDXL.load(model_files(replace(SPEC, path=str(file), config=str(folder), dtype="bf16")))
    assert {model.unet.dtype, *(each.dtype for each in model.text.values())} == {torch.bfloat16}
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in model.vae.state_dict().items())


def test_half_precision_is_near(folder) -> None:
    whole, half = SDXL.load(folder), SDXL.load(replace(model_folder(folder), dtype="bf16", vae_dtype="fp16"))
    assert half.vae.dtype == torch.float16
    latents = half.encode_images(torch.zeros(1, 3, 64, 64))
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, whole.encode_images(torch.zeros(1, 3, 64, 64)), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(draw(half), draw(whole), atol=0.15, rtol=0.05)


def test_another_autoencoder_replaces_models_own(both, tmp_path) -> None:
    folder, _ = both
    shutil.copytree(folder / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({key: value * 0.5 for key, value in weights.items()}, file)
    model = SDXL.load(model_files(replace(SPEC, path=str(folder), vae=str(tmp_path / "vae"))))
    assert all(torch.equal(value, weights[key] * 0.5) for key, value in model.vae.state_dict().items())
    with pytest.raises(UserError, match=r"model\.vae=.*nothing must be an autoencoder"):
        model_files(replace(SPEC, path=str(folder), vae=str(tmp_path / "nothing")))


def test_variant_is_found_where_there_is_one(both, tmp_path) -> None:
    folder, _ = both
    shutil.copytree(folder, tmp_path / "half")
    for file in (tmp_path / "half").rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert model_files(replace(SPEC, path=str(folder), variant="fp16")).variant is None
    files = model_files(replace(SPEC, path=str(tmp_path / "half")))
    assert files.variant == "fp16"
    assert torch.equal(draw(SDXL.load(files)), draw(SDXL.load(folder)))


def test_encoders_that_wait_elsewhere_give_same(folder, monkeypatch) -> None:
    model, waiting = SDXL.load(folder), SDXL.load(replace(model_folder(folder), offload="encoders"))
    moved = []
    for part in (*waiting.text.values(), waiting.vae):
        monkeypatch.setattr(part, "to", lambda device, part=part: moved.append((type(part).__name__, str(device))))
    assert torch.equal(draw(waiting), draw(model))
    waiting.decode(torch.zeros(1, 12, 16, 16))
    names = [type(part).__name__ for part in (*waiting.text.values(), waiting.vae)]
    assert moved[:4] == [(names[0], "cpu"), (names[1], "cpu")] * 2  # there and back, both are the CPU here
    assert moved[-2:] == [(names[2], "cpu")] * 2
    count = len(moved)
    waiting.decode(torch.zeros(1, 12, 16, 16, requires_grad=True))
    assert len(moved) == count + 1  # there, and not back: the backward pass needs its weights


@pytest.mark.parametrize("attention", ["sdpa", "sliced"])
def test_attention_in_another_way_is_same(folder, attention) -> None:
    other = SDXL.load(replace(model_folder(folder), attention=attention))
    torch.testing.assert_close(draw(other), draw(SDXL.load(folder)), atol=1e-4, rtol=1e-4)


def test_another_resolution(folder) -> None:
    model = SDXL.load(replace(model_folder(folder), resolution=32))
    assert draw(model).shape[-2:] == (8, 8)
    assert model.encode_prompts(["a dog"]).tensors[2].tolist() == [[32, 32, 0, 0, 32, 32]]
    with pytest.raises(UserError, match=r"model\.resolution=40 must be a multiple of 16"):
        model_files(replace(SPEC, path=str(folder), resolution=40))


def test_only_what_changes_numbers_is_in_key(folder) -> None:
    files = model_folder(folder)
    assert files.numbers() == replace(files, attention="sliced", offload="encoders", checkpointing=True).numbers() == {}
    assert replace(files, dtype="bf16", resolution=32).numbers() == {"dtype": "bf16", "resolution": 32}


def test_gradients_through_recomputed_blocks(folder, loras) -> None:
    """Run two forward passes with different rows and masks before one backward pass, as a learned merge does."""

    def gradients(files: ModelFiles) -> list[torch.Tensor]:
        model = SDXL.load(files)
        with model.attach(loras) as adapters:
            factors = [each.requires_grad_() for layer in adapters.layers.values() for each in (layer.up, layer.down)]
            draw = torch.Generator().manual_seed(0)
            x = torch.randn(1, 12, 16, 16, generator=draw)
            prompt = model.encode_prompts(["a dog"])
            adapters.rows(torch.tensor([[1.0, 0.0]]))
            first = model.predict(x, torch.tensor([500]), prompt)
            adapters.rows(torch.tensor([[0.3, 1.0]]))
            second = model.predict(x + first, torch.tensor([500]), prompt)
            adapters.rows(torch.tensor([[0.0, 0.0]]))
            second.square().mean().backward()
            return [factor.grad for factor in factors if factor.grad is not None]

    plain, recomputed = gradients(model_folder(folder)), gradients(replace(model_folder(folder), checkpointing=True))
    assert len(plain) == len(recomputed) > 0
    for left, right in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cond_stage_model.transformer.text_model.x"], "is a Stable Diffusion 1 checkpoint, not a checkpoint of"),
        (["cond_stage_model.model.x"], "is a Stable Diffusion 2 checkpoint"),
        (["conditioner.embedders.0.model.x"], "is an SDXL refiner"),
        (["lora_unet_x.alpha"], "is a LoRA"),
        (["foo"], "not a known model"),
    ],
)
def test_single_files_of_other_models(tmp_path, names, words) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=words):
        model_files(replace(SPEC, path=str(tmp_path / "model.safetensors")))


def test_files_that_cannot_be_read(both, tmp_path) -> None:
    folder, file = both
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        model_files(replace(SPEC, path=str(broken)))
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"x")
    with pytest.raises(UserError, match="pickled checkpoints can run code"):
        model_files(replace(SPEC, path=str(pickled)))
    with pytest.raises(UserError, match="nobody/nothing is not a path here and cannot be downloaded"):
        model_files(replace(SPEC, path="nobody/nothing"))
    shutil.copytree(folder, tmp_path / "folder")
    (tmp_path / "folder/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"incomplete folder of an SDXL model without unet/\*\.safetensors"):
        model_files(replace(SPEC, path=str(tmp_path / "folder")))
    config = json.loads((folder / "unet" / "config.json").read_text()) | {"cross_attention_dim": 64}
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be read as an SDXL model"):
        SDXL.load(model_files(replace(SPEC, path=str(other))))


UNET, ENCODER = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / ENCODER).write_bytes((folder / ENCODER).read_bytes()[:5000]), "cannot be read as an"),
        (lambda folder: save_file({"x": torch.zeros(1)}, folder / UNET), "lacks weights of its unet"),
        (
            lambda folder: shutil.rmtree(folder / "tokenizer"),
            "incomplete folder of an SDXL model without tokenizer/vocab.json",
        ),
        (lambda folder: (folder / "tokenizer_2/tokenizer.json").unlink(), "without tokenizer_2/vocab.json"),
    ],
    ids=["truncated encoder", "another's weights", "no tokenizer", "no vocabulary"],
)
def test_folders_that_lack_something(both, tmp_path, spoil, words) -> None:
    folder = shutil.copytree(both[0], tmp_path / "folder")
    spoil(folder)
    with pytest.raises(UserError, match=words):
        SDXL.load(model_files(replace(SPEC, path=str(folder))))


def test_file_that_is_no_autoencoder(both, tmp_path) -> None:
    save_file({"unet.x": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="cannot be read as an autoencoder"):
        SDXL.load(model_files(replace(SPEC, path=str(both[0]), vae=str(tmp_path / "lora.safetensors"))))


def test_shapes_of_single_file_are_those_of_its_configurations(both) -> None:
    folder, file = both
    found = layer_map(replace(SPEC, name="sdxl", path=str(file), config=str(folder)))
    assert found == layer_map(model_folder(folder)) != layer_map("sdxl")
    with pytest.raises(UserError, match="nowhere is not a diffusers model folder"):
        layer_map(replace(SPEC, name="sdxl", path="nowhere"))


def test_text_encoder_is_whole(both, tmp_path) -> None:
    folder, _ = both
    other = shutil.copytree(folder, tmp_path / "folder")
    file = other / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    lost = next(key for key in weights if key.endswith("layers.0.mlp.fc1.weight"))
    save_file({key: value for key, value in weights.items() if key != lost}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"text_encoder lacks .*layers\.0\.mlp\.fc1\.weight"):
        SDXL.load(model_files(replace(SPEC, path=str(other))))
