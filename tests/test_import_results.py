"""task=import_results: runs made elsewhere in a table, after checks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose
from made_run import PAIRS, make_run, read_table

from lorabench.base import UserError, __version__
from lorabench.engine.record import sha256
from lorabench.report.imported import CHECKSUMS
from lorabench.report.planned import comparisons
from lorabench.tasks.import_results import run

ORIGIN = "NVIDIA H200"
ROW = f"duolora (imported: {ORIGIN})"


def sealed(folder: Path, **changes: object) -> Path:
    """Return a made run with key, versions and checksums, as `RunWriter.seal` writes them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    files = [str(path.relative_to(folder)) for path in paths]
    sums = {file: sha256(folder / file) for file in files}
    manifest |= {"key": f"key of {folder.name}", "computed_on": [ORIGIN], "files": dict.fromkeys(files, 1)}
    manifest |= {"versions": {"lorabench": __version__, "torch": "2.9"}, CHECKSUMS: sums}
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return sealed(make_run(tmp_path / "theirs" / "duolora-none-s0", pairs=PAIRS[:2], images=1))


@pytest.fixture
def start(tmp_path: Path, hydra: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def started(folder: Path | str, *words: str) -> str:
        names = [f"folder='{folder}'", "name=table", f"output={tmp_path}"]
        run(compose("config", ["task=import_results", *names, *words]), tmp_path)
        return capsys.readouterr().out

    return started


def test_row_has_its_origin_and_baselines_are_those_of_table(theirs: Path, start, tmp_path: Path) -> None:
    own = [make_run(tmp_path / "table" / name, name, pairs=PAIRS[:2], images=1) for name in ("direct", "duolora")]
    other = pd.read_parquet(theirs / "scores.parquet")
    other.assign(value=other["value"] + 0.3).to_parquet(theirs / "scores.parquet")
    sealed(theirs)
    out = start(theirs)
    table = read_table(tmp_path / "table")
    assert list(table.index) == ["base", "content_only", "style_only", "direct", "duolora", ROW, "oracle"]
    assert table.at[ROW, "dino/content"] == pytest.approx(table.at["duolora", "dino/content"] + 0.3, abs=1e-5)
    alone = pd.read_parquet(own[0] / "scores.parquet").query("method == 'base' and metric == 'dino/content'")
    assert table.at["base", "dino/content"] == pytest.approx(alone["value"].mean(), abs=1e-5)
    assert f"{ROW}: made elsewhere in duolora-none-s0, with lorabench {__version__}, torch 2.9, on {ORIGIN}." in out
    assert {(each.family, each.against) for each in comparisons(list(table.index), "direct") if each.label == ROW} == {
        ("methods", "direct")
    }
    assert "already in" in start(theirs)
    assert len(list((tmp_path / "table").glob("*/scores.parquet"))) == 3


def test_folder_of_runs_makes_table_of_its_own(theirs: Path, start, tmp_path: Path) -> None:
    sealed(make_run(theirs.parent / "direct-none-s0", "direct", pairs=PAIRS[:2], images=1))
    start(theirs.parent, "task.origin='lab <b>|cluster'")
    table = read_table(tmp_path / "table")
    assert [name for name in table.index if "(" in name] == [
        f"{name} (imported: lab <b>|cluster)" for name in ("direct", "duolora")
    ]
    page = (tmp_path / "table" / "report.html").read_text()
    assert "lab &lt;b&gt;|cluster" in page and "lab <b>" not in page
    assert "lab \\<b>\\|cluster" in (tmp_path / "table" / "table.md").read_text()


def changed(file: str, text: bytes = b"\0") -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes() + text)


def manifest(**values: object) -> Callable[[Path], object]:
    return lambda folder: sealed(folder, **values)


def renamed(folder: Path) -> None:
    scores = pd.read_parquet(folder / "scores.parquet")
    scores.assign(content="../../secret").to_parquet(folder / "scores.parquet")
    sealed(folder)


def linked(folder: Path) -> None:
    image = folder / "images" / "base" / "mug_1+halftone_1" / "00.png"
    shutil.move(image, folder.parent / "elsewhere.png")
    image.symlink_to(folder.parent / "elsewhere.png")


IMAGE = "images/duolora/mug_1+halftone_1/00.png"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (changed(IMAGE), f"{IMAGE} is damaged; copy the whole folder again"),
        (changed("config.yaml"), "config.yaml is damaged"),
        (lambda folder: (folder / IMAGE).unlink(), f"{IMAGE} is missing"),
        (lambda folder: (folder / "scores.parquet").unlink(), "is not a finished run (no scores.parquet)"),
        (changed("manifest.json", b"{"), "has a broken manifest.json"),
        (manifest(versions={"lorabench": "0.0.1"}), f"was made by lorabench 0.0.1 and this is {__version__}"),
        (manifest(checksums=None), "was made by an older lorabench, without checksums"),
        (manifest(checksums={"scores.parquet": "0"}), "was made by an older lorabench, without checksums"),
        (manifest(key=None), "is not a finished run of lorabench"),
        (manifest(files=[]), "is not a finished run of lorabench"),
        (
            manifest(checksums={"../x": "0", "scores.parquet": "0", "config.yaml": "0"}),
            "lists a file outside of it (../x)",
        ),
        (renamed, "'../../secret', which is not one of a file"),
        (linked, "lists a file outside of it"),
    ],
)
def test_folder_that_cannot_be_trusted_is_refused(theirs, start, tmp_path: Path, damage, words: str) -> None:
    damage(theirs)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        start(theirs)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "table").exists()


def test_run_of_another_model_is_left_out(theirs: Path, start, tmp_path: Path) -> None:
    make_run(tmp_path / "table" / "direct", "direct", pairs=PAIRS[:2], images=1)
    scores = pd.read_parquet(theirs / "scores.parquet")
    scores.assign(model="sdxl").to_parquet(theirs / "scores.parquet")
    sealed(theirs)
    with pytest.raises(UserError, match="must have the same model, not micro, sdxl"):
        start(theirs)
    assert [path.name for path in (tmp_path / "table").iterdir()] == ["direct"]
    with pytest.raises(UserError, match="needs a run folder"):
        start("")
