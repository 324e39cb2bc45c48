"""The views of a run: W&B offline without an account, csv, none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lorabench.config import LoggerSpec
from lorabench.loggers.curves import Curves
from lorabench.loggers.views import CsvView, NoView, WandbView, open_view

CAPTIONS = {"images/base/mug_1+ink_1/00.png": "mug_1+ink_1: a sks mug in szn style"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a view reads of a finished run."""
    folder = tmp_path / "adhoc" / "direct-none-s0"
    image = folder / next(iter(CAPTIONS))
    image.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), "teal").save(image)
    (folder / "manifest.json").write_text(json.dumps({"method": "direct"}))
    (folder / "table.csv").write_text("method,clip_t\nbase,0.25\n")
    return folder


def test_wandb_offline_needs_no_account(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    view = open_view(LoggerSpec("wandb", "offline", "lorabench"), folder)
    assert isinstance(view, WandbView)
    view.curves("personalise", "mug_1", {"loss": [1.0, 0.5]})
    assert dict(view.run.summary)["personalise/mug_1/loss"] == 0.5
    view.finish(CAPTIONS)
    [run] = (folder / "wandb").glob("offline-run-*")
    assert list(run.glob("run-*.wandb"))
    assert list(run.glob("files/media/images/images/base_*.png"))
    assert list(run.glob("files/media/table/*.table.json"))


def test_csv(folder: Path) -> None:
    view = open_view(LoggerSpec("csv"), folder)
    assert isinstance(view, CsvView)
    view.curves("merge", "mug_1+ink_1", {"cycle": [2.0, 1.5]})
    view.curves("merge", "mug_1+ink_1", {"content": [3.0]})
    view.finish(CAPTIONS)
    assert (folder / "curves.csv").read_text().splitlines() == [
        "stage,name,term,step,value",
        "merge,mug_1+ink_1,content,0,3.0",
        "merge,mug_1+ink_1,cycle,0,2.0",
        "merge,mug_1+ink_1,cycle,1,1.5",
    ]


def test_none_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    view = open_view(LoggerSpec("none"), folder)
    assert isinstance(view, NoView)
    view.curves("merge", "mug_1+ink_1", {"cycle": [2.0]})
    view.finish(CAPTIONS)
    assert sorted(folder.rglob("*")) == before


def test_curves_keep_what_lightning_logs(tmp_path: Path) -> None:
    curves = Curves()
    for step, loss in enumerate((1.0, 0.5)):
        curves.log_metrics({"loss": loss, "epoch": 0.0}, step)
    curves.write(tmp_path)
    assert json.loads((tmp_path / "curves.json").read_text()) == {"loss": [1.0, 0.5]}
