"""The user's LoRA files: merging by any method, from Python and the command line, and generating images."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from commands import Commands
from conftest import CPU
from PIL import Image

from lorabench import UserLoRA, merge
from lorabench.base import UserError, seed_of
from lorabench.config.schemas import GenerateSpec
from lorabench.config.task_schemas import FileTask
from lorabench.data.concepts import ROLES
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import export
from lorabench.merging.method import load
from lorabench.models.files import preset
from lorabench.models.sdxl.model import SDXL
from lorabench.sampling.generate import generate
from lorabench.tasks.file_request import Request
from lorabench.tasks.files import merge as merge_files
from lorabench.tasks.merge_files import merged
from lorabench.tasks.user_loras import UserPair

TEACHERS = GenerateSpec(images=2, steps=2, guidance=1.0, batch=2)
PROMPTS = ["content.prompt=a sks mug", "style.prompt=a boat in szn style", "prompt=a sks mug in szn style"]


@pytest.fixture
def files(loras: tuple[LoRA, LoRA], tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for lora, path in zip(loras, paths, strict=True):
        lora.save(path)
    return paths


@pytest.fixture
def run(commands: Commands, files, folder: Path, tmp_path: Path):
    """Return a function that runs a task on the files in their folder."""

    def start(task: str, *overrides: str):
        model = ["model=micro", f"model.path={folder}", "generate.images=2", "generate.steps=2"]
        store = f"store={tmp_path / 'store'}"
        loras = ["content=a.safetensors", "style=b.safetensors"]
        return commands.run(f"task={task}", *loras, *model, store, *overrides, cwd=tmp_path)

    return start


def unasked(*_: Any) -> NoReturn:
    """Fail, because the merge must not need a teacher."""
    pytest.fail("the teacher was asked")


def updates(lora: LoRA) -> dict[str, torch.Tensor]:
    return {layer: factors.up @ factors.down for layer, factors in lora.items()}


def assert_same(left: LoRA, right: LoRA, **tolerance: Any) -> None:
    torch.testing.assert_close(updates(left), updates(right), **tolerance)


def differ(left: LoRA, right: LoRA) -> bool:
    pairs = zip(updates(left).values(), updates(right).values(), strict=True)
    return any(not torch.allclose(one, two) for one, two in pairs)


def test_naive_sum_needs_no_weights(files, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lorabench.tasks.jobs.load_model", None)
    ours = updates(merge(*files, model=folder))
    one, two = (updates(LoRA.load(path)) for path in files)
    assert ours.keys() == one.keys() | two.keys()
    for layer, update in ours.items():
        parts = [each[layer] for each in (one, two) if layer in each]
        torch.testing.assert_close(update, torch.stack(parts).sum(0))


def test_others_may_read_merge(files, folder, tmp_path) -> None:
    before = os.umask(0o022)
    merge(*files, model=folder).save(tmp_path / "m.safetensors")
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o644
    assert os.umask(before) == 0o022


def test_learned_merge_draws_what_it_learns_from(files, folder, loras) -> None:
    content, style = UserLoRA(files[0], "a sks mug"), UserLoRA(files[1], "a boat in szn style")
    options = {"prompt": "a sks mug in szn style", "model": folder, "device": "cpu", "teachers": TEACHERS}
    fit = {"steps": 3, "lr": 0.1, "batch": 1}
    first = merge(content, style, "ziplora", fit=fit, **options)
    assert_same(first, merge(content, style, "ziplora", fit=fit, **options))
    assert differ(first, export(loras))
    other = merge(UserLoRA(files[0], "a boat"), style, "ziplora", fit=fit, **options)
    assert differ(first, other)


def test_given_images_are_taken_instead(files, folder, tmp_path) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    Image.new("RGB", (80, 70), "teal").save(shots / "0.png")
    pair = UserPair(
        (UserLoRA(files[0], "a sks mug", shots),),
        (UserLoRA(files[1], "a boat in szn style", [shots / "0.png"]),),
        "a sks mug in szn style",
    )
    done: list[float] = []
    method = load("ziprank", fit={"steps": 2, "lr": 0.1, "batch": 1})
    result = merged(pair, method, preset(folder), 0, CPU, unasked, done.append)
    assert len(result.losses["content"]) == 2
    assert done[-1] == 2 * 10.0 * 2


def test_merge_that_looks_at_no_image_has_none_drawn(files, folder, loras, pair, model) -> None:
    """SSR-Merge runs the model on noise with both prompts."""
    own = UserPair(
        (UserLoRA(files[0], "a sks mug"),), (UserLoRA(files[1], "a boat in szn style"),), "a sks mug in szn style"
    )
    done: list[float] = []
    result = merged(own, load("ssr_merge"), preset(folder), 0, CPU, unasked, done.append)
    assert not done or set(done) == {0.0}
    assert differ(result.file, export(loras))


def test_several_contents_and_text_encoders(loras, folder, tmp_path) -> None:
    layer = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"
    text = Factors(torch.ones(1, 32), torch.full((32, 1), 0.1))
    paths = []
    for index, lora in enumerate([*loras, LoRA(dict(loras[0]), {layer: text})]):
        paths.append(tmp_path / f"{index}.safetensors")
        lora.save(paths[-1])
    ours = merge(paths[:2], paths[2], "custom_weights", model=folder, content=0.5, style=2.0)
    torch.testing.assert_close(ours.text[layer].up @ ours.text[layer].down, torch.full((32, 32), 0.2))
    one, two = (updates(lora) for lora in loras)
    torch.testing.assert_close(updates(ours), {layer: 2.5 * one[layer] + 0.5 * two[layer] for layer in one})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "ziplora"}, "learns from the prompt that .*a.safetensors was trained with"),
        ({"method": "nothing"}, "method=nothing is unknown"),
        ({"method": "ziplora", "fit": {"steps": 0}}, "method.fit.steps=0 must be at least 1"),
        (
            {"model": "micro"},
            "a.safetensors does not fit micro: .*trained on this model, or use model=<its model>",
        ),
        ({"style": "missing.safetensors"}, "missing.safetensors"),
        ({"device": "tpu"}, "device=tpu is unknown"),
        ({"method": "lora_rar"}, "knows layers of width 96 and 160 and this model has"),
        (
            {"method": "custom_weights", "blocks": {"nowhere": {"style": 1.0}}},
            "nowhere must be a module with adapted layers",
        ),
        ({"method": "custom_weights", "contents": 1.0}, "method.contents is unknown to .* method/merge=custom_weights"),
        ({"method": "custom_weights", "content_": 1.0}, "its settings are: blocks, concepts, content, routing, style"),
    ],
)
def test_mistakes_in_python(files, folder, arguments, words) -> None:
    given = {"content": files[0], "style": files[1], "model": folder} | arguments
    with pytest.raises(UserError, match=words):
        merge(given.pop("content"), given.pop("style"), **given)


def test_what_no_file_can_hold_is_refused_and_drawn(
    run, files: tuple[Path, Path], folder, loras, model, tmp_path
) -> None:
    with pytest.raises(UserError, match=r"klora cannot be exported as one LoRA file.* use task=generate"):
        merge(*files, "klora", model=folder)
    result = run("generate", "method=klora", "method.beta=1e9", PROMPTS[-1], "output=images")
    assert result.returncode == 0, result.stderr
    assert_drawn(model, loras[1], tmp_path / "images")  # with so much weight on the style, the content has no effect


def test_merge_on_command_line(run, files, folder, loras, tmp_path) -> None:
    result = run("merge", "method=direct", "task.dtype=float32")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("merged.safetensors  (") and result.stderr == ""
    assert_same(LoRA.load(tmp_path / "merged.safetensors"), export(loras))

    options = ["output=out/small.safetensors", "task.rank=2", "task.format=kohya"]
    result = run("merge", "method=direct", *options)
    assert result.returncode == 0, result.stderr
    assert "relative error" in result.stdout and "rank 2" in result.stdout
    small, error = export(loras).compressed(2)
    assert str(error) in result.stdout
    assert_same(LoRA.load(tmp_path / "out" / "small.safetensors"), small, rtol=1e-2, atol=1e-3)


def test_merge_that_its_rank_cuts_says_by_how_much(run, files, folder, loras, model) -> None:
    merge: Any = load("ties", rank=2).merge
    error = merge.combined(loras, model.layers.adapted(loras, ROLES), 0, {}).error
    result = run("merge", "method=ties", "method.rank=2")
    assert result.returncode == 0, result.stderr
    assert f"ties, relative error {error:.2%} at rank 2, rank 2" in result.stdout and error > 0.01
    assert "relative error" not in run("merge", "method=ties", "method.rank=1000").stdout


def test_learned_merge_on_command_line_finds_its_images_again(run, files, folder, tmp_path) -> None:
    options = ["method=ziprank", "method.fit.steps=2", *PROMPTS]
    first = run("merge", *options)
    assert first.returncode == 0, first.stderr
    assert len(list((tmp_path / "store" / "teachers").iterdir())) == 2
    drawn = {path: path.stat().st_mtime_ns for path in tmp_path.glob("store/teachers/*/*.png")}
    before = LoRA.load(tmp_path / "merged.safetensors")
    assert run("merge", *options).returncode == 0
    assert drawn == {path: path.stat().st_mtime_ns for path in tmp_path.glob("store/teachers/*/*.png")}
    assert_same(LoRA.load(tmp_path / "merged.safetensors"), before, rtol=0, atol=0)


def test_sweep_makes_file_method(run, files, folder, loras, tmp_path) -> None:
    """The flag may be anywhere on the command line; Hydra leaves no files."""
    output = "output=merged_${hydra:runtime.choices.method}.safetensors"
    result = run("merge", "method=direct,content_only", "-m", output)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert_same(LoRA.load(tmp_path / "merged_direct.safetensors"), export(loras), rtol=1e-2, atol=1e-3)
    assert_same(LoRA.load(tmp_path / "merged_content_only.safetensors"), loras[0], rtol=1e-2, atol=1e-3)
    files = {"a.safetensors", "b.safetensors", "merged_direct.safetensors", "merged_content_only.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {*files, "store"}


def test_method_that_leaves_nothing_has_no_file(run, files, folder, tmp_path) -> None:
    result = run("merge", "method=base", "output=merged.safetensors")
    assert result.returncode == 2 and "leaves nothing of the LoRAs" in result.stderr
    assert not (tmp_path / "merged.safetensors").exists()


def test_generate_on_command_line(run, files, folder, loras, model, tmp_path) -> None:
    result = run("generate", "method=direct", PROMPTS[-1], "output=images")
    assert result.returncode == 0, result.stderr
    assert_drawn(model, export(loras), tmp_path / "images")


def assert_drawn(model: SDXL, lora: LoRA, images: Path) -> None:
    """Check that the images are those of one LoRA, up to rounding."""
    prompt = "a sks mug in szn style"
    seeds = [seed_of("image", prompt, index, 0) for index in range(2)]
    spec = GenerateSpec(images=2, steps=2, guidance=3.0, batch=1)  # guidance of model=micro
    expected = generate(model, [lora], [prompt] * 2, seeds, spec, CPU)
    for index, image in enumerate(expected):
        found = np.asarray(Image.open(images / f"{index:02d}.png"), dtype=int)
        assert np.abs(found - image).max() <= 1


@pytest.mark.parametrize(
    ("task", "overrides", "words"),
    [
        ("merge", ["style=null"], "task=merge needs a style LoRA; use style=<file.safetensors>"),
        (
            "merge",
            ["content=[a.safetensors,b.safetensors]", "content.prompt=[x]"],
            "content.prompt has 1 entries for 2",
        ),
        ("merge", ["method=ziprank"], "use content.prompt='a sks dog'"),
        ("merge", ["method=direct", "output=merged.ckpt"], "must be a .safetensors file"),
        ("merge", ["method=direct", "task.format=a1111"], "use task.format=<kohya|diffusers>"),
        ("merge", ["method=direct", "task.rank=0"], "task.rank=0 must be at least 1"),
        ("merge", ["method=ziprank", *PROMPTS, "content.images=nowhere"], "nowhere is not a folder"),
        ("merge", ["method=direct", "output=a.safetensors/merged.safetensors"], "cannot write to a.safetensors: File"),
        ("generate", ["method=direct"], "task=generate needs a prompt"),
        ("generate", ["method=direct", PROMPTS[-1], "output=b.safetensors"], "cannot write to b.safetensors: File"),
    ],
)
def test_mistakes_on_command_line(run, files, folder, tmp_path, task, overrides, words) -> None:
    result = run(task, *overrides)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert words in result.stderr
    assert not list(tmp_path.glob("merged*"))


def test_what_is_kept_is_kept_where_files_can_be_locked(tmp_path: Path, monkeypatch) -> None:
    def no_locks(root: Path) -> None:
        raise UserError("cannot be locked")

    monkeypatch.setattr("lorabench.engine.store.check_locks", no_locks)
    none: Any = None  # fields that are not read
    request = Request("direct", none, none, none, none, none, none, tmp_path / "store", 0, tmp_path)
    assert not (tmp_path / "store").exists()
    with pytest.raises(UserError, match="cannot be locked"):
        assert request.store


def test_merge_without_model_uses_all_cores(files, folder, tmp_path, monkeypatch) -> None:
    """SVDs of large files take minutes on one thread; a merge that learns keeps the threads of the trainer."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        threads.append(torch.get_num_threads())
        return merged(*arguments, **options)

    monkeypatch.setattr("lorabench.tasks.file_request.merged", counted)
    pair = UserPair(
        (UserLoRA(files[0], "a sks mug"),), (UserLoRA(files[1], "a boat in szn style"),), "a sks mug in szn style"
    )
    task = FileTask("merge", "merge", "kohya", None, "float32")
    fit = {"steps": 1, "lr": 0.1, "batch": 1}
    try:
        for method in (load("svd"), load("ziplora", fit=fit)):
            torch.set_num_threads(1)
            output = tmp_path / f"{method.name}.safetensors"
            request = Request(
                method.name, pair, method, preset(folder), TEACHERS, CPU, task, tmp_path / "store", 0, output
            )
            merge_files(request)
            assert output.is_file()
    finally:
        torch.set_num_threads(1)
    assert threads == [3, 1]
