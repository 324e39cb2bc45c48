"""No command changes a file that it did not write."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch
from commands import Commands
from made_run import make_run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.measure import new_file
from lorabench.base import UserError
from lorabench.engine import store_commands
from lorabench.engine.own_files import check_replaceable, is_own
from lorabench.engine.store import Store
from lorabench.lora.adapter import LoRA
from lorabench.lora.files.embeddings import separate
from lorabench.report.__main__ import main
from lorabench.scoring.pickles import convert
from pretraining import curve, evaluate, export

ONE_PAIR = [
    "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", "dataset.content_images=1", "dataset.style_images=1",
    "dataset.references=1", "lora.steps=1", "generate.images=1", "generate.steps=1",
]  # fmt: skip
MINE = ("images/dog/1.png", "references/a.png", "merged/a.safetensors", "figures/a.png", "config.yaml", "table.md")


def write(folder: Path, *names: str) -> dict[str, str]:
    """Return the user's files with their content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine {name}")
    return {name: f"mine {name}" for name in names}


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("task", ["benchmark", "compare", "params", "theorem1"])
def test_run_into_folder_of_user_is_refused_before_work(
    commands: Commands, tiny: list[str], tmp_path: Path, task: str
) -> None:
    mine = write(tmp_path / "mine", *MINE, "manifest.json", "failed/a.txt", "error.txt", "params.md", "curves.csv")
    arguments = [*tiny, *ONE_PAIR, f"task={task}", "method=direct", "hydra.run.dir=.", f"output={tmp_path / 'out'}"]
    done = commands.run(*arguments, cwd=tmp_path / "mine")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "has files that lorabench did not write (config.yaml, curves.csv, error.txt and 8 more)" in done.stderr
    assert contents(tmp_path / "mine") == mine
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "lock" not in path.name]


def test_run_replaces_its_own_files_only(commands: Commands, tiny: list[str], tmp_path: Path) -> None:
    """The second run has another row and no curves: all files of the first run are gone, all of the user's remain."""
    run = tmp_path / "run"
    arguments = [*tiny, *ONE_PAIR, f"hydra.run.dir={run}", f"output={tmp_path}"]
    first = commands.run(*arguments, "method=direct", "logger=csv")
    assert first.returncode == 0 and (run / "curves.csv").is_file(), first.stderr
    assert (run / "merged" / "mug_1+ink_1.safetensors").is_file()
    mine = write(run, "notes.txt", "images/mine.png", "images/direct/mine.png", "figures/mine.png")
    second = commands.run(*arguments, "method=klora")
    assert second.returncode == 0, second.stderr
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {name: (run / name).read_text() for name in mine} == mine
    assert not {file for file in left - mine.keys() if file.startswith(("images/direct", "merged", "curves"))}
    again = commands.run(*arguments, "method=klora")
    assert again.returncode == 0 and again.stdout == second.stdout


def test_killed_run_is_resumed_in_its_folder(commands: Commands, tiny: list[str], tmp_path: Path) -> None:
    """A folder is known as ours if the run is killed at any time before its end."""
    run = tmp_path / "run"
    arguments = [*tiny, *ONE_PAIR, f"hydra.run.dir={run}", f"output={tmp_path}", "method=direct", "logger=csv"]
    assert commands.run(*arguments).returncode == 0
    manifest = run / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"key": "', '"key": "other'))  # as before it is sealed
    (run / ".draft-elsewhere-1").mkdir()
    done = commands.run(*arguments)
    assert done.returncode == 0 and manifest.read_text() != text.replace('"key": "', '"key": "other'), done.stderr


def test_sweep_into_folder_of_user_is_refused_before_work(commands: Commands, tiny: list[str], tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", "table.md")
    arguments = [*tiny, *ONE_PAIR, f"output={tmp_path / 'out'}", "hydra.sweep.dir=.", "method=direct,klora", "-m"]
    done = commands.run(*arguments, cwd=tmp_path / "mine")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "table.md was not written by lorabench" in done.stderr and "hydra.sweep.dir=" in done.stderr
    assert contents(tmp_path / "mine") == mine and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["table.md", "grid.png", "report.html", "manifest.json"])
def test_joint_report_replaces_its_own_files_only(tmp_path: Path, capsys, name: str) -> None:
    runs = [str(make_run(tmp_path / each, each, images=1)) for each in ("direct", "duolora")]
    mine = write(tmp_path / "mine", name)
    assert main([*runs, "--out", str(tmp_path / "mine")]) == 2
    assert f"{name} was not written by lorabench" in capsys.readouterr().err and contents(tmp_path / "mine") == mine
    for _ in range(2):
        assert main([*runs, "--out", str(tmp_path / "free")]) == 0


@pytest.fixture
def two(loras: tuple[LoRA, LoRA], tmp_path: Path) -> list[str]:
    """Return the arguments of a merge of two files in tmp_path."""
    for lora, name in zip(loras, "ab", strict=True):
        lora.save(tmp_path / f"{name}.safetensors")
    return [
        "content=a.safetensors",
        "style=b.safetensors",
        "method=direct",
        "model=micro",
        f"store={tmp_path / 'store'}",
    ]


@pytest.mark.parametrize("name", ["merged.safetensors", "mine.safetensors"])
def test_merge_replaces_its_own_file_only(
    commands: Commands, two: list[str], tmp_path: Path, name: str, folder
) -> None:
    """A LoRA of the user's, and a file that is none, are left as they are; a merge of ours is replaced."""
    arguments = ["task=merge", *two, f"model.path={folder}", f"output={name}"]
    path = tmp_path / name
    for mine in ((tmp_path / "a.safetensors").read_bytes(), b"mine"):
        path.write_bytes(mine)
        done = commands.run(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"{name} was not written by lorabench and is left as it is; move it, or use output=" in done.stderr
        assert path.read_bytes() == mine
    path.unlink()
    for weights in ("[1,1]", "[1,0.5]"):
        done = commands.run(*arguments, f"weights={weights}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with safe_open(path, "pt") as file:
        assert '"weight": 0.5' in file.metadata()["lorabench.inputs"]
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".lorabench-")]


def test_merge_leaves_link_and_half_download(commands: Commands, two: list[str], tmp_path: Path, folder: Path) -> None:
    """The output is a link to an earlier merge, and a browser is loading a file of the same name."""
    arguments = ["task=merge", *two, f"model.path={folder}"]
    (tmp_path / "disk").mkdir()
    assert commands.run(*arguments, "output=disk/m.safetensors", cwd=tmp_path).returncode == 0
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "disk" / "m.safetensors")
    (tmp_path / "disk" / "m.safetensors.part").write_text("half")
    first = (tmp_path / "disk" / "m.safetensors").read_bytes()
    done = commands.run(*arguments, "output=link.safetensors", "weights=[1,0.5]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link.safetensors").is_symlink() and (tmp_path / "disk" / "m.safetensors").read_bytes() != first
    assert (tmp_path / "disk" / "m.safetensors.part").read_text() == "half"


def test_embedding_of_user_beside_merge_is_left(commands: Commands, two: list[str], tmp_path: Path, folder) -> None:
    tokens = {"<s0>": {"text_encoder": torch.ones(1, 32)}}
    LoRA.load(tmp_path / "a.safetensors").with_tokens(tokens).save(tmp_path / "a.safetensors", format="store")
    [tokens_file] = separate(tokens, tmp_path / "m.safetensors")
    save_file({"clip_l": torch.zeros(1, 32)}, tokens_file)
    mine = tokens_file.read_bytes()
    arguments = ["task=merge", *two, f"model.path={folder}", "output=m.safetensors"]
    done = commands.run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and f"{tokens_file.name} was not written by lorabench" in done.stderr, done.stderr
    assert tokens_file.read_bytes() == mine and not (tmp_path / "m.safetensors").exists()
    tokens_file.unlink()
    for _ in range(2):
        assert commands.run(*arguments, cwd=tmp_path).returncode == 0
    assert is_own(tokens_file)


@pytest.mark.parametrize("name", ["inspect.json", "inspect.png"])
def test_inspect_replaces_its_own_files_only(commands: Commands, two: list[str], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"files": []}')
    done = commands.run("task=inspect", *two, cwd=tmp_path)
    assert done.returncode == 2 and f"{name} was not written by lorabench" in done.stderr, done.stderr
    assert (tmp_path / name).read_text() == '{"files": []}' and len(list(tmp_path.glob("inspect.*"))) == 1
    (tmp_path / name).unlink()
    for _ in range(2):
        assert commands.run("task=inspect", *two, cwd=tmp_path).returncode == 0
    assert is_own(tmp_path / "inspect.json") and is_own(tmp_path / "inspect.png")


def test_generate_replaces_its_own_images_only(commands: Commands, two: list[str], tmp_path: Path, folder) -> None:
    """Fewer images of another prompt: none of the older ones is left, and everything of the user's."""
    arguments = ["task=generate", *two, f"model.path={folder}", "generate.steps=1", "output=out"]
    assert commands.run(*arguments, "prompt=a sks mug in szn style", "generate.images=3", cwd=tmp_path).returncode == 0
    mine = write(tmp_path / "out", "notes.txt")
    assert commands.run(*arguments, "prompt=a sks cat in szn style", "generate.images=1", cwd=tmp_path).returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"00.png", "manifest.json", "notes.txt"}
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["prompt"] == "a sks cat in szn style"
    foreign = write(tmp_path / "photos", "00.png")
    done = commands.run(*arguments[:-1], "output=photos", "prompt=a sks cat in szn style", cwd=tmp_path)
    assert done.returncode == 2 and "has files that lorabench did not write" in done.stderr
    assert (
        contents(tmp_path / "photos") == foreign and (tmp_path / "out" / "notes.txt").read_text() == mine["notes.txt"]
    )


def test_sweep_of_merges_leaves_multirun_of_user(commands: Commands, two: list[str], tmp_path: Path, folder) -> None:
    """A store in a folder that another program's sweeps use."""
    mine = write(tmp_path / "store", "multirun.yaml")
    done = commands.run(
        "task=merge", *two, f"model.path={folder}", "seed=0,1", "output=m-${hydra:job.num}.safetensors",
        "-m", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "store" / "multirun.yaml").read_text() == mine["multirun.yaml"]


def test_cleaning_store_leaves_files_of_user(tmp_path: Path, capsys) -> None:
    """Folders named like artifacts, or like a store's own, in a folder that is used as a store."""
    Store.open(tmp_path)
    mine = write(
        tmp_path, f"photos/{'0' * 32}/1.png", "embeddings/a.safetensors", ".drafts/letter.txt", ".partial/download.bin"
    )
    assert store_commands.main(["gc", "--delete", "--older-than", "0", "--store", str(tmp_path)]) == 0
    assert mine.items() <= contents(tmp_path).items()


def test_file_of_ours_is_known_by_its_own_words(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    assert not is_own(tmp_path / "mine.png")
    for name, text in (
        ("a.json", "[]"),
        ("b.json", "{}"),
        ("c.json", "{"),
        ("d.safetensors", ""),
        ("e.txt", "lorabench"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name} was not written by lorabench"):
            check_replaceable(tmp_path / name, "another")
    (tmp_path / "f.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "g.json").mkdir()
    for name in ("f.json", "g.json"):
        with pytest.raises(UserError, match="left as it is"):
            check_replaceable(tmp_path / name, "another")
    check_replaceable(tmp_path / "new.json", "another")


def test_tools_replace_no_file_of_user(tmp_path: Path) -> None:
    """Pretraining, benchmarks and the conversion of checkpoints write to paths that the user names."""
    mine = write(tmp_path, "model/model_index.json", "samples.png", "curve.png", "csd.safetensors", "table.md")
    for command in (
        lambda: export.export(tmp_path / "last.ckpt", tmp_path / "vae", tmp_path / "model"),
        lambda: evaluate.evaluate(tmp_path / "model"),
        lambda: curve.plot({}, tmp_path / "curve.png"),
        lambda: convert(tmp_path / "csd.bin", tmp_path / "csd.safetensors", {"kind": "csd"}),
    ):
        with pytest.raises(UserError, match=r"was not written by .* and is left as it is"):
            command()
    with pytest.raises(ArgumentTypeError, match="exists and is left as it is"):
        new_file(str(tmp_path / "table.md"))
    assert contents(tmp_path) == mine
