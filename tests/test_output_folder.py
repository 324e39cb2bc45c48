"""Folders that commands fill: the user's files are not changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorabench.base import UserError
from lorabench.engine.output_folder import MANIFEST, OutputFolder


def fill(folder: OutputFolder, keep: bool = False, **files: str) -> None:
    """Write files; a double underscore is a slash, a single one before the ending a dot."""
    with folder.filled(keep) as draft:
        for name, text in files.items():
            path = draft / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_replace_those_of_earlier_command_only(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "run")
    folder.check()
    fill(folder, table_md="1", images__a_png="1", images__b_png="1")
    mine = [write(folder.path / name) for name in ("notes.txt", "images/mine.png", "figures/mine.png")]
    folder.check()
    fill(folder, table_md="2", images__a_png="2")
    assert contents(folder.path) == {
        "table.md": "2", "images/a.png": "2", **{str(path.relative_to(folder.path)): "mine" for path in mine}
    }  # fmt: skip
    assert folder.files() == {"table.md": 1, "images/a.png": 1}


@pytest.mark.parametrize("name", ["images/dog.png", "notes.txt", "manifest.json", "table.md"])
def test_folder_of_user_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, '{"files": {"notes.txt": 4}}')
    with pytest.raises(UserError, match=r"has files that lorabench did not write .* use hydra.run.dir="):
        OutputFolder(tmp_path).check()


def test_link_and_file_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "link", write(tmp_path / "file")):
        with pytest.raises(UserError, match="is not a folder"):
            OutputFolder(path).check()


def test_hidden_files_and_empty_folders_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / ".git" / "config")
    (tmp_path / "images").mkdir()
    write(tmp_path / "run.log")
    OutputFolder(tmp_path).check(ignored=["run.log"])


@pytest.mark.parametrize("name", ["images/a.png", "images"])
def test_file_of_user_with_name_of_ours_is_kept(tmp_path: Path, name: str) -> None:
    folder = OutputFolder(tmp_path)
    fill(folder, table_md="1")
    mine = write(tmp_path / name)
    with pytest.raises(UserError, match=f"{mine} was not written by lorabench"):
        fill(folder, table_md="2", images__a_png="2")
    assert contents(tmp_path) == {"table.md": "1", name: "mine"}


def test_failed_command_leaves_earlier_files(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    fill(folder, table_md="1")
    with pytest.raises(ZeroDivisionError), folder.filled() as draft:
        write(draft / "table.md", "2")
        _ = 1 / 0
    assert contents(tmp_path) == {"table.md": "1"}


def test_killed_command_leaves_folder_that_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill between two moves, all files are listed, and the next command replaces them."""
    folder, moved = OutputFolder(tmp_path), []

    def replace(source: Path, target: Path) -> None:
        if len(moved) == 2:  # the manifest and one file
            raise KeyboardInterrupt
        moved.append(target)
        Path(source).rename(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", replace)
        fill(folder, a_md="1", b_md="1", c_md="1")
    assert len(contents(tmp_path)) == 1
    folder.check()
    fill(folder, b_md="2")
    assert contents(tmp_path) == {"b.md": "2"}


def test_kept_files_stay_listed(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    fill(folder, scores_parquet="1", table_md="1")
    (tmp_path / MANIFEST).write_text(json.dumps(json.loads((tmp_path / MANIFEST).read_text()) | {"key": "k"}))
    fill(folder, keep=True, table_md="22")
    assert folder.files() == {"scores.parquet": 1, "table.md": 2} and folder.manifest()["key"] == "k"


def test_single_file_is_added_and_removed_only_if_ours(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    folder.claim()
    write(folder.add("curves.csv"), "1")
    mine = write(tmp_path / "error.txt")
    folder.remove("error.txt")
    with pytest.raises(UserError, match=r"error\.txt was not written by lorabench"):
        folder.add("error.txt")
    folder.remove("curves.csv")
    assert contents(tmp_path) == {"error.txt": "mine"} and mine.is_file()
