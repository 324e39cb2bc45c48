"""A mistake is reported in one line with a fix, the exit code is 2, and nothing is trained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from commands import Commands
from PIL import Image


def photographs(root: Path) -> Path:
    """Return overrides for one subject and one style."""
    subject, style = root / "dreambooth" / "dataset" / "dog", root / "styledrop" / "data"
    subject.mkdir(parents=True)
    style.mkdir(parents=True)
    Image.new("RGB", (32, 32), "brown").save(subject / "00.jpg")
    (subject.parent / "prompts_and_classes.txt").write_text("Classes\n\nsubject_name,class\ndog,dog\n\nPrompts\n")
    Image.new("RGB", (32, 32), "teal").save(style / "image_01_05.jpg")
    (style / "data.json").write_text('{"image_01_05.jpg": ["A village", "in oil painting style"]}')
    return root


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=duolra"], ["method=duolra is unknown", "did you mean duolora?"]),
        (["ablation=no_cycles"], ["ablation=no_cycles is unknown", "did you mean no_cycle?"]),
        (["dataset=microwrld"], ["did you mean microworld?"]),
        (
            ["method=ziplora", "ablation=no_cycle"],
            ["ablation=no_cycle changes settings that ziplora does not have", "method=<duolora|duolora_released>"],
        ),
        (["experiments=table9"], ["experiments=table9 is unknown"]),
        (["lora.steps=-5"], ["lora.steps=-5 must be at least 1"]),
        (["lora.steps=many"], ["lora.steps=many", "could not be converted to Integer"]),
        (["lora.stepz=5"], ["the key lora.stepz is unknown; use one of lora.steps"]),
        (["method"], ["method must be key=value"]),
        (["model.path=nowhere"], ["nowhere is not a diffusers model folder", "model.path="]),
        (["dataset.subjects=[mug_99]"], ["mug_99", "mug_"]),
        (["dataset=dreambooth_styledrop", "dataset.root=nowhere"], ["nowhere", "dataset.root="]),
        pytest.param(
            ["trainer=gpu"],
            ["PyTorch finds no GPU here", "use trainer=cpu"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["output=/proc/lorabench"], ["cannot write to", "use output="]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_line_and_exit_code_2(
    commands: Commands, tmp_path: Path, tiny: list[str], overrides: list[str], words: list[str]
) -> None:
    result = commands.run(*tiny, f"output={tmp_path}", *overrides, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert not [word for word in words if word not in result.stderr], result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.glob("store/personalize/*"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda dog: (dog / "00.jpg").unlink(), "must hold an image"),
        (lambda dog: (dog / "00.jpg").write_bytes(b"\xff\xd8 broken"), "00.jpg is not a readable image"),
    ],
    ids=["empty folder", "broken image"],
)
def test_bad_photographs(commands: Commands, tmp_path: Path, tiny: list[str], spoil, words: str) -> None:
    root = photographs(tmp_path / "data")
    spoil(root / "dreambooth" / "dataset" / "dog")
    chosen = ["dataset.subjects=[dog]", "dataset.styles=[image_01_05]"]
    overrides = ["dataset=dreambooth_styledrop", f"dataset.root={root}", *chosen]
    result = commands.run(*tiny, f"output={tmp_path / 'out'}", *overrides)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert words in result.stderr


def test_model_that_is_not_sdxl(commands: Commands, tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "sd15").mkdir()
    (tmp_path / "sd15" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    result = commands.run(*tiny, f"output={tmp_path / 'out'}", f"model.path={tmp_path / 'sd15'}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "holds a StableDiffusionPipeline, which is not supported" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="no folder is read-only to root")
def test_read_only_output_folder(commands: Commands, tmp_path: Path, tiny: list[str]) -> None:
    tmp_path.chmod(0o500)
    result = commands.run(*tiny, f"output={tmp_path}")
    tmp_path.chmod(0o700)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert f"cannot write to {tmp_path}" in result.stderr


def test_faulty_command_harms_nothing_stored(commands: Commands, tmp_path: Path, tiny: list[str]) -> None:
    kept = tmp_path / "store" / "personalize" / "abc" / "lora.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    assert commands.run(*tiny, f"output={tmp_path}", "generate.images=0").returncode == 2
    assert kept.read_bytes() == b"weights"
