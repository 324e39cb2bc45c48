"""task=unzip: the user's images as a content LoRA and a style LoRA."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from commands import Commands
from conftest import CPU
from conftest import reference as solid
from PIL import Image
from safetensors.torch import load_file
from test_file_readers import comfy_layers
from test_lora_files_diffusers import outputs

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import GenerateSpec
from lorabench.data.concepts import ROLES, Concept
from lorabench.data.images import reference
from lorabench.engine.lightning import quiet_trainer
from lorabench.lora.adapter import Adapter, LoRA
from lorabench.lora.export import export
from lorabench.lora.masks import Masks
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.initial import random_factors
from lorabench.personalization.schemes.unziplora import UnZipJob
from lorabench.personalization.training import Environment
from lorabench.personalization.unzip import unzip as train
from lorabench.report.contact_sheet import Cell, Strip, sheet
from lorabench.tasks.reconstruction import FILE, Looks, file_error
from lorabench.tasks.unzip_inputs import check_sizes, image_sets
from lorabench.tasks.unzip_words import Words, lists, suggestions

WORDS = Words("a sks cat", "sks", "watercolor painting")
PROMPTS = ["content.prompt=a sks mug", "style.prompt=ink"]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Return images of one size and of another."""
    paths = [tmp_path / f"{name}.png" for name in ("a", "b", "wide")]
    for path, size, color in zip(paths, ((64, 64), (64, 64), (80, 64)), ("red", "teal", "blue"), strict=True):
        Image.new("RGB", size, color).save(path)
    return paths


def test_prompts_of_words() -> None:
    assert tuple(WORDS.prompts) == (
        "a sks cat in watercolor painting style", "a sks cat", "a cat in watercolor painting style",
    )  # fmt: skip
    assert (WORDS.plain, WORDS.subject) == ("a cat", "cat")
    assert Words("a sks cat", "sks", "sketch style").prompts.full == "a sks cat in sketch style"
    scene = WORDS.scene("in the snow")
    assert scene.prompt == "a sks cat in the snow in watercolor painting style"
    assert (scene.subject, scene.styled) == ("a sks cat in the snow", "a cat in the snow in watercolor painting style")


def test_words_that_do_not_fit(capsys) -> None:
    with pytest.raises(
        UserError, match=r"content\.prompt='a cat' must contain the identifier sks; use content\.prompt="
    ):
        Words("a cat", "sks", "ink").check()
    with pytest.raises(UserError, match=r"must name a class"):
        Words("a sks", "sks", "ink").check()
    WORDS.check()
    assert not capsys.readouterr().err
    Words("a sks cat", "sks", "cat drawing").check()
    assert "style.prompt='cat drawing' names the subject (cat)" in capsys.readouterr().err


def test_image_sets(images: list[Path], tmp_path: Path) -> None:
    assert image_sets(str(images[0])) == [("a", [images[0]])]
    assert image_sets([str(path) for path in images[:2]]) == [("a", images[:2])]
    assert [name for name, _ in image_sets(str(tmp_path))] == ["a", "b", "wide"]
    assert [name for name, _ in image_sets(str(tmp_path / "?.png"))] == ["a", "b"]
    with pytest.raises(UserError, match=r"needs an image; use image=cat\.png"):
        image_sets(None)
    for missing in (str(tmp_path / "c.png"), [str(tmp_path / "c.png")], str(tmp_path / "*.jpg")):
        with pytest.raises(UserError, match="is not a file; use image="):
            image_sets(missing)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="two images named a"):
        image_sets(str(tmp_path))


def test_images_that_do_not_fit(images: list[Path], tmp_path: Path) -> None:
    shots = [reference(path, "", "") for path in images]
    check_sizes(shots[:2])
    with pytest.raises(UserError, match="image 3 of the set has 80 x 64 pixels and the first 64 x 64; crop"):
        check_sizes(shots)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png is not a readable image"):
        check_sizes([reference(tmp_path / "text.png", "", "")])


def test_suggestions_are_most_similar_words() -> None:
    class Clip:
        """Embeds an image as its second axis, and texts by their words."""

        def embed(self, images: Any) -> Any:
            return {"content": torch.tensor([[0.0, 1.0, 0.0]])}

        def embed_text(self, texts: list[str]) -> torch.Tensor:
            return torch.stack(
                [torch.tensor([0.0, 1.0 * ("cat" in text) + 0.5 * ("ink" in text), 1.0]) for text in texts]
            )

    found = suggestions(Clip(), [Image.new("RGB", (8, 8))], True)  # pyright: ignore[reportArgumentType]
    assert found["content"][0] == ("cat", 1.0) and found["style"][0] == ("ink", 0.5)
    for world in (True, False):
        for words in lists(world).values():
            assert len(set(words)) == len(words) > 10


def test_file_error_is_that_of_predictions(model) -> None:
    """Zero if both prompts are the full one and nothing is masked; else the distance by plain products."""
    layers = model.layers.trained()
    pair = [random_factors(layers, 8, seed_of("error", role), 0.3) for role in ROLES]
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    scene = WORDS.scene()
    same = scene._replace(subject=scene.prompt, styled=scene.prompt)
    assert file_error(model, pair, same, latents) < 1e-3
    apart = file_error(model, pair, scene, latents)
    assert 1e-3 < apart < 1
    half = [
        LoRA(dict(each), masks={name: Masks(o=torch.full((len(f.up),), 0.5)) for name, f in each.items()})
        for each in pair
    ]
    assert file_error(model, half, same, latents) < 1e-3  # the file has the merge vectors
    assert file_error(model, half, scene, latents, separated=False) < 1e-3  # the joint model reads one prompt, too


def test_looks_end_training_that_gains_no_more(model, tmp_path: Path) -> None:
    values = iter([0.2, 0.5, 0.6, 0.605, 0.603, 0.9])

    class Module:
        def mask(self, masked: bool) -> None:
            assert masked

    def look(stop: float | None) -> Looks:
        spec, rule = GenerateSpec(images=2, steps=1, guidance=1.0, batch=2), load("unziplora").sampling
        scored: Any = lambda images: next(values)  # noqa: E731
        return Looks(model, rule, WORDS.scene(), spec, scored, tmp_path, 10, stop, 0)

    looks, trainer = look(0.01), quiet_trainer(model.device, "32-true")
    ended = []
    for batch in range(50):
        looks.on_train_batch_end(trainer, Module(), None, batch, 0)  # pyright: ignore[reportArgumentType]
        ended.append(trainer.should_stop)
    assert looks.found == {10: 0.2, 20: 0.5, 30: 0.6, 40: 0.605, 50: 0.603}
    assert ended.index(True) == 49
    assert {path.name for path in tmp_path.iterdir()} == {FILE, *(f"{step:06d}.png" for step in range(10, 51, 10))}
    assert look(0.01).found == looks.found and look(0.01).is_finished and not look(None).is_finished
    again = look(None)  # resumed from step 35: the looks after it are made again
    again.on_train_batch_end(trainer, Module(), None, 39, 0)  # pyright: ignore[reportArgumentType]
    assert again.found == {10: 0.2, 20: 0.5, 30: 0.6, 40: 0.9}


def test_sheet_holds_images_in_rows() -> None:
    cell = Cell(Image.new("RGB", (64, 64), "red"), "a caption that needs more than one line of the sheet")
    page = sheet([Strip("one", [cell]), Strip("three", [cell] * 3)])
    red = (np.asarray(page) == (255, 0, 0)).all(-1)
    assert red.sum() == 4 * 192 * 192


def unzip(commands: Commands, tiny: Any, folder: Path, scorers: Path, folder_of_run: Path, *words: str):
    return commands.run(
        "task=unzip", "model=micro", f"model.path={folder}", "scorers=micro", f"scorers.path={scorers}", "lora=default",
        "lora.rank=2", "lora.steps=6", "lora.batch=1", "lora.lr=1e-5", "generate.steps=2", "generate.images=1",
        "task.look_every=3", f"store={folder_of_run / 'store'}", *words, cwd=folder_of_run,
    )  # fmt: skip


def test_command_writes_loras_and_sheet(commands, tiny, folder, scorers, images, tmp_path: Path) -> None:
    words = (f"image=[{images[0]},{images[1]}]", *PROMPTS, "output=out", "task.dtype=float32")
    result = unzip(commands, tiny, folder, scorers, tmp_path, *words)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    facts = json.loads((out / "manifest.json").read_text())
    assert set(facts["files"]) == {"content.safetensors", "style.safetensors", "joint.safetensors", "contact.png"}
    assert facts["prompts"] == {"full": "a sks mug in ink style", "content": "a sks mug", "style": "a mug in ink style"}
    assert list(facts["consistency"]) == ["3", "6"] and facts["file_error"] > 0
    [kept] = (tmp_path / "store" / "unzip").iterdir()
    exact = [Adapter.load(kept / f"{role}.safetensors") for role in ROLES]
    for name, expected in (("content", exact[0]), ("style", exact[1]), ("joint", export(exact))):
        found = Adapter.load(out / f"{name}.safetensors")
        for layer, factors in found.items():
            update = expected[layer].up @ expected[layer].down
            torch.testing.assert_close(factors.up @ factors.down, update, atol=1e-5, rtol=1e-4)
    assert any(mask.only().min() < 1 for mask in exact[0].masks.values())
    check_programs(out, exact, SDXL.load(folder))
    before = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    again = unzip(commands, tiny, folder, scorers, tmp_path, *words)
    assert again.returncode == 0 and again.stdout == result.stdout
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == before
    assert "joint.safetensors differs from the exact joint model by" in again.stdout


def check_programs(out: Path, exact: list[Adapter], model: SDXL) -> None:
    """Check that diffusers predicts with each file as we do, and that ComfyUI knows all its keys."""
    pipeline: Any = model.pipeline
    bare = outputs(model)[0]
    for name, adapter in (("content", exact[0].unmasked()), ("style", exact[1].unmasked()), ("joint", export(exact))):
        with model.attach([adapter]):
            ours = outputs(model)[0]
        pipeline.load_lora_weights(out, weight_name=f"{name}.safetensors")
        theirs = outputs(model)[0]
        pipeline.unload_lora_weights()
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
        assert (theirs - bare).abs().max() > 1e-2
        assert comfy_layers(list(load_file(out / f"{name}.safetensors"))) == set(adapter)


def test_training_ends_early_in_whole_command(commands, tiny, folder, scorers, images, tmp_path: Path) -> None:
    """No look gains 10, so the third one ends the training, and the files are those of its step."""
    words = (
        f"image={images[0]}", *PROMPTS, "output=out", "lora.steps=30", "task.stop=10", "task.scenes=[]",
        "task.subjects=[]",
    )  # fmt: skip
    result = unzip(commands, tiny, folder, scorers, tmp_path, *words)
    assert result.returncode == 0, result.stderr
    assert "ended after 9 of 30 steps, since two looks gained less than 10" in result.stdout
    assert list(json.loads((tmp_path / "out" / "manifest.json").read_text())["consistency"]) == ["3", "6", "9"]
    again = unzip(commands, tiny, folder, scorers, tmp_path, *words)
    assert again.returncode == 0 and again.stdout == result.stdout


def test_ended_training_has_adapters_of_its_last_step(model, lora_spec, tmp_path: Path) -> None:
    """A training of 12 steps that a callback ends after 6 has the factors and columns of a whole one at step 6."""
    scheme: Any = load("unziplora", recalibrations=3).training
    job = UnZipJob(
        Concept("image", "content", "cat", (solid("cat", WORDS.prompts.full, "red"),), ()),
        replace(lora_spec, steps=12, warmup=0), "image", WORDS.prompts, scheme,
    )  # fmt: skip
    values = iter([0.5, 0.5, 0.5])
    scored: Any = lambda images: next(values)  # noqa: E731
    spec, rule = GenerateSpec(images=1, steps=1, guidance=1.0, batch=1), load("unziplora").sampling
    looks = Looks(model, rule, WORDS.scene(), spec, scored, tmp_path, 2, 0.01, 0)
    ended, whole = Recorder(), Recorder()
    found = train(model, job, Environment(0, CPU), [looks, ended], lambda: looks.is_finished)
    train(model, job, Environment(0, CPU), [whole])
    assert len(ended.states) == 6 and len(whole.states) == 12
    for one, other in zip(ended.states[-1], whole.states[5], strict=True):
        assert torch.equal(one, other)
    widths = [len(each.up) for each in found[0].values()]
    columns = ended.states[-1][-1].split(widths, dim=1)
    for each, (content, style) in zip(columns, zip(*(lora.values() for lora in found), strict=True), strict=True):
        for chosen, factors in zip(each, (content, style), strict=True):
            assert torch.equal(factors.up.abs().sum(1) > 0, chosen > 0)


class Recorder(pl.Callback):
    """Keeps the trained tensors of every step."""

    def __init__(self) -> None:
        self.states: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.states.append([each.detach().clone() for each in pl_module.factors])


def test_words_are_suggested_and_used_if_asked(commands, tiny, folder, scorers, images, tmp_path: Path) -> None:
    few = (f"image={images[0]}", "task.look_every=0", "lora.steps=3", "output=out")
    refused = unzip(commands, tiny, folder, scorers, tmp_path, *few)
    assert refused.returncode == 2 and not (tmp_path / "out").exists()
    assert len(refused.stderr.strip().splitlines()) == 1
    assert re.search(
        r"content\.prompt and style\.prompt must be given \(most similar content: \w+ \(-?0\.\d\d\), .*; style: .*\); "
        r"use content\.prompt='a sks \w+' style\.prompt='\w+', or words=suggest", refused.stderr,
    )  # fmt: skip
    taken = unzip(commands, tiny, folder, scorers, tmp_path, *few, "words=suggest")
    assert taken.returncode == 0, taken.stderr
    first = taken.stderr.split("content: ")[1].split(" (")[0]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["prompts"]["content"] == f"a sks {first}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method=direct",), "task=unzip trains as UnZipLoRA, not as method/training=dreambooth; use method=unziplora"),
        (("method/merge=ties",), "method/merge=ties"),
        (("lora.steps=2",), "lora.steps=2 must be at least 3"),
        (("method.style_blocks=[up_blocks.7]",), "method.style_blocks=up_blocks.7 has no layer to adapt"),
        (("content.prompt=a mug",), "must contain the identifier sks"),
        (("image=[{a},{wide}]",), "image 2 of the set has 80 x 64 pixels and the first 64 x 64; crop the images"),
        (("style.prompt=null",), "style.prompt must be given (most similar style: "),
        (("image={text}",), "text.png is not a readable image"),
        (("image={missing}",), "missing.png is not a file; use image=cat.png"),
        (("image=[{a},{missing}]",), "missing.png is not a file; use image=cat.png"),
        (("image={empty}",), "empty must hold an image (.jpg, .png, .webp or another that Pillow reads)"),
        (("image='{empty}/*.png'",), "is not a file; use image=cat.png, a folder of images, or 'pictures/*.png'"),
    ],
)
def test_mistakes_are_one_line(commands, tiny, folder, scorers, images, tmp_path: Path, words, message) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("a letter")
    paths = {name: tmp_path / f"{name}.png" for name in ("a", "wide", "text", "missing")} | {
        "empty": tmp_path / "empty"
    }
    typed = [each.format_map(paths) for each in words]
    result = unzip(commands, tiny, folder, scorers, tmp_path, f"image={images[0]}", *PROMPTS, *typed)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "unzipped").exists() and not list(tmp_path.glob("store/unzip/*"))


def test_style_that_names_subject_is_one_line_of_warning(
    commands, tiny, folder, scorers, images, tmp_path: Path
) -> None:
    words = (f"image={images[0]}", "content.prompt=a sks mug", "style.prompt=mug drawing", "task.look_every=0")
    result = unzip(commands, tiny, folder, scorers, tmp_path, *words)
    assert result.returncode == 0
    lines = [
        line for line in result.stderr.splitlines() if "style.prompt='mug drawing' names the subject (mug)" in line
    ]
    assert len(lines) == 1


@pytest.mark.parametrize("given", ["{}", "'{}/*.png'"])
def test_folder_and_pattern_make_one_folder_per_image(
    commands, tiny, folder, scorers, images, tmp_path: Path, given: str
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in images[:2]:
        path.rename(pictures / path.name)
    words = (f"image={given.format(pictures)}", *PROMPTS, "output=out", "task.look_every=0", "lora.steps=3")
    result = unzip(commands, tiny, folder, scorers, tmp_path, *words)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    hashes = {}
    for name in ("a", "b"):
        facts = json.loads((tmp_path / "out" / name / "manifest.json").read_text())
        assert set(facts["files"]) == {"content.safetensors", "style.safetensors", "joint.safetensors", "contact.png"}
        hashes[name] = facts["images"]
    assert hashes["a"] != hashes["b"]
