"""A killed training resumes from its last checkpoint and gives the same result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artifacts import artifact
from conftest import CPU, reference

from lorabench.config.schemas import GenerateSpec, LoRASpec
from lorabench.data.concepts import Concept
from lorabench.engine.checkpoint import FILE
from lorabench.engine.curves import Curves
from lorabench.engine.job import Make
from lorabench.engine.store import Store
from lorabench.engine.work import Resumable
from lorabench.lora.adapter import LoRA
from lorabench.models.files import model_folder
from lorabench.personalization.dreambooth import personalize
from lorabench.personalization.schemes.dreambooth import DreamBoothJob
from lorabench.personalization.training import Environment
from lorabench.tasks.jobs import Personalize

EVERY_2 = replace(CPU, checkpoint_every=2)
RECIPES = {
    "adamw": {"schedule": "cosine", "accumulate": 2},
    "text_encoders": {"text_encoders": True, "flips": True, "schedule": "linear"},
    "prodigy": {"optimizer": "prodigy", "lr": 1.0},
    "adamw8bit": {"optimizer": "adamw8bit", "rank": 512},  # enough numbers for moments of 8 bits
}
PACKAGES = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}
PARTS = {"concept": "mug"}


class Killed(Exception):
    pass


def kill_at(step: int) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done >= step:
            raise Killed

    return progress


def equal(left: LoRA, right: LoRA) -> bool:
    pairs = [(left[layer], right[layer]) for layer in left] + [
        (left.text[layer], right.text[layer]) for layer in left.text
    ]
    return all(torch.equal(a.down, b.down) and torch.equal(a.up, b.up) for a, b in pairs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_is_same_bit_by_bit(tmp_path: Path, model, pair, lora_spec, recipe: str) -> None:
    if recipe in PACKAGES:
        pytest.importorskip(PACKAGES[recipe])
    spec, concept = replace(lora_spec, **{"steps": 7, **RECIPES[recipe]}), pair.contents[0]
    whole, kept, done = Curves(), Curves(), []
    uninterrupted = personalize(model, concept, spec, Environment(0, CPU, curves=whole))
    with pytest.raises(Killed):
        personalize(model, concept, spec, Environment(0, EVERY_2, kill_at(6), Curves(), scratch=tmp_path))
    resumed = personalize(model, concept, spec, Environment(0, EVERY_2, done.append, kept, scratch=tmp_path))
    assert done[0] in (4, 5) and done[-1] == 7  # 4 updates were saved, the fifth came after it
    assert len(done) == 3 * spec.accumulate
    assert equal(uninterrupted, resumed) and len(resumed.text) == len(uninterrupted.text)
    assert kept.values == whole.values and len(whole.values["loss"]) == 7


def test_saving_changes_nothing_and_leaves_one_file(tmp_path: Path, model, pair, lora_spec) -> None:
    spec = replace(lora_spec, steps=5)
    saved = personalize(model, pair.contents[0], spec, Environment(0, EVERY_2, scratch=tmp_path))
    assert equal(saved, personalize(model, pair.contents[0], spec, Environment(0, CPU)))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert torch.load(tmp_path / FILE, weights_only=True)["done"] == 4


@pytest.mark.parametrize("damage", [lambda data: data[:500], lambda data: b"", lambda data: b"no checkpoint" * 99])
def test_damaged_checkpoint_is_discarded_with_warning(tmp_path: Path, model, pair, lora_spec, caplog, damage) -> None:
    spec, file = replace(lora_spec, steps=5), tmp_path / FILE
    whole = personalize(model, pair.contents[0], spec, Environment(0, EVERY_2, scratch=tmp_path))
    file.write_bytes(damage(file.read_bytes()))
    again = personalize(model, pair.contents[0], spec, Environment(0, EVERY_2, scratch=tmp_path))
    assert equal(whole, again) and caplog.text.count(f"{file} is damaged and is discarded") == 1
    caplog.clear()
    assert (
        equal(whole, personalize(model, pair.contents[0], spec, Environment(0, EVERY_2, scratch=tmp_path)))
        and not caplog.text
    )


def test_samples_from_before_kill_are_there(tmp_path: Path, folder: Path, generate_spec, lora_spec) -> None:
    spec, store = replace(lora_spec, steps=5, sample_every=1), Store(tmp_path)
    with pytest.raises(Killed):
        make(store, folder, spec, generate_spec, kill_at(4))
    assert store.find(artifact("personalize", PARTS)) is None and store.scratch(artifact("personalize", PARTS)).is_dir()
    path = make(store, folder, spec, generate_spec, lambda done: None)
    assert [image.name for image in sorted(path.glob("samples/*"))] == [f"{step:06d}.png" for step in range(1, 6)]
    assert not store.scratch(artifact("personalize", PARTS)).exists()


def test_kill_9_and_same_again(tmp_path: Path, folder: Path, generate_spec, lora_spec) -> None:
    spec = replace(lora_spec, steps=400)
    code = (
        "import sys; from pathlib import Path; from lorabench.config.schemas import *\n"
        "from lorabench.engine.store import Store\n"
        f"from test_resume import make\n"
        f"make(Store(Path(sys.argv[1])), Path(sys.argv[2]), {spec!r}, {generate_spec!r}, lambda done: None)"
    )
    paths = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    killed, whole = Store(tmp_path / "killed"), Store(tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(killed.root), str(folder)], env={**os.environ, "PYTHONPATH": paths}
    )
    state = killed.scratch(artifact("personalize", PARTS)) / FILE
    while not state.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert killed.find(artifact("personalize", PARTS)) is None and state.is_file()
    short, done = replace(spec, steps=torch.load(state, weights_only=True)["done"] + 3), []
    resumed = make(killed, folder, short, generate_spec, done.append)
    assert len(done) == 3  # a few of hundreds: the rest was finished before the kill
    expected = make(whole, folder, short, generate_spec, lambda done: None)
    assert equal(*(LoRA.load(path / "lora.safetensors") for path in (resumed, expected)))
    assert (resumed / "curves.json").read_text() == (expected / "curves.json").read_text()


def make(store: Store, folder: Path, spec: LoRASpec, generation: GenerateSpec, progress: Callable[[int], None]) -> Path:
    images = tuple(reference("mug", "a sks mug", color) for color in ("red", "orange"))
    concept = Concept("mug_1", "content", "mug", images, images)
    job = DreamBoothJob(concept, spec, concept.name)
    work = Personalize(model_folder(folder), EVERY_2, job, 0, generation, None)
    made = artifact("personalize", PARTS, Resumable(work))
    Make(store, (made,))(progress)
    return store.path(made)
