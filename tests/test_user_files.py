"""No command changes a file that it did not write."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Commands
from made_run import make_run

from lorabench.report.__main__ import main

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
