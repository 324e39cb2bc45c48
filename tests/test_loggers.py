"""Views of a run: W&B offline without an account, csv, none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from made_run import METRICS, PAIRS, make_run
from omegaconf import OmegaConf
from PIL import Image
from wandb_file import OfflineRun

from lorabench.base import UserError
from lorabench.config.schemas import LoggerSpec
from lorabench.engine.curves import Curves
from lorabench.report.loggers.view import CsvView, View
from lorabench.report.loggers.views import logger_of, open_view
from lorabench.report.loggers.wandb import WandbView, flat

OFFLINE = LoggerSpec("wandb", "offline", "lorabench")
TABLE = pd.DataFrame(
    {
        "method": ["base", "direct", "↳ direct reported: arXiv 2504.13206"],
        "dino/content": [0.2, 0.5, 0.47],
        "dino/content_low": [0.1, 0.4, None],
        "dino/content_rank": [None, 1.0, None],
        "csd/style": [0.3, None, None],
        "learned_parameters": [None, 12288, None],
        "reported": [None, None, "protocol differs: micro scorers"],
    }
)


def configured(method: str) -> dict:
    return {
        "name": "sweep",
        "seed": 0,
        "method": {"name": method, "fit": {"steps": 3}},
        "dataset": {"name": "microworld"},
    }


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # restored afterwards
    monkeypatch.delenv("WANDB_DATA_DIR")


def finished(folder: Path, method: str = "direct") -> Path:
    """Write a finished run with one pair and two images per row."""
    make_run(folder, method, pairs=PAIRS[:1], images=2)
    TABLE.replace("direct", method).to_csv(folder / "table.csv", index=False)
    Image.new("RGB", (8, 8), "teal").save(folder / "grid.png")
    return folder


def runs_of(folder: Path) -> list[OfflineRun]:
    """Wait for W&B's process, which writes for a moment after a run has finished."""
    for _ in range(100):
        runs = [OfflineRun(each) for each in sorted((folder / "wandb").glob("offline-run-*"))]
        if all(run.exit_code is not None for run in runs):
            return runs
        time.sleep(0.1)
    raise TimeoutError(folder)


def test_runs_of_sweep_are_one_group_with_same_keys(tmp_path: Path) -> None:
    """Run jobs in one process, as the basic launcher does."""
    folders = [finished(tmp_path / "sweep" / f"{method}-none-s0", method) for method in ("direct", "duolora")]
    for folder, method in zip(folders, ("direct", "duolora"), strict=True):
        with open_view(OFFLINE, folder, method, configured(method)) as view:
            view.curves("merge", "mug_1+halftone_1", {"cycle": [1.0, 0.5, 0.25]})
            view.finish()
    [[one], [other]] = map(runs_of, folders)
    assert {one.group, other.group} == {"sweep"} and one.id != other.id
    assert [one.name, other.name] == ["sweep/direct-none-s0", "sweep/duolora-none-s0"]
    assert one.exit_code == other.exit_code == 0
    assert one.summary["summary/dino/content"] == 0.5 and one.summary["summary/dino/content_low"] == 0.4
    assert "summary/csd/style" not in one.summary and "summary/learned_parameters" not in one.summary
    assert one.summary["costs/merge_seconds"] == 11.4 and one.summary["costs/learned_parameters"] == 12288
    assert one.summary.keys() == other.summary.keys() and one.config.keys() == other.config.keys()
    assert [run.config["method"] for run in (one, other)] == ["direct", "duolora"]
    settings = {key: one.config[key] for key in ("method/fit/steps", "seed", "dataset", "ablation", "model")}
    assert settings == {"method/fit/steps": 3, "seed": 0, "dataset": "microworld", "ablation": "none", "model": "micro"}
    term = "merge/mug_1+halftone_1/cycle"
    assert [(row["step"], row[term]) for row in one.history if term in row] == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_every_image_is_in_table_with_its_scores(tmp_path: Path) -> None:
    folder = finished(tmp_path / "sweep" / "direct-none-s0")
    with open_view(OFFLINE, folder, "a", configured("direct")) as view:
        view.finish()
    [run] = runs_of(folder)
    images = run.table("images")
    assert images["columns"] == ["image", "method", "content", "style", "prompt", "noise", "index", *METRICS]
    assert len(images["data"]) == 5 * 2  # baselines, oracle and the method
    scores = pd.read_parquet(folder / "scores.parquet")
    for image, method, _, _, _, _, index, *values in images["data"]:
        own = scores[(scores["method"] == method) & (scores["image"] == index)]
        means = [own.loc[own["metric"] == metric, "value"].mean() for metric in METRICS]
        assert values == pytest.approx(means)
        with (
            Image.open(run.files["images"][image["path"]]) as shown,
            Image.open(folder / "images" / method / "mug_1+halftone_1" / f"{index:02d}.png") as original,
        ):
            assert shown.getpixel((0, 0)) == original.getpixel((0, 0))
    assert all(path.is_relative_to(folder) for path in run.files["images"].values())  # not in the user's home
    assert run.table("scores")["columns"] == list(TABLE)[:-1] and len(run.table("scores")["data"]) == 2
    assert list(run.folder.glob("files/media/images/grid_*.png"))


def test_large_images_are_reduced(tmp_path: Path) -> None:
    folder = finished(tmp_path / "sweep" / "direct-none-s0")
    Image.new("RGB", (1024, 768), "teal").save(folder / "images" / "direct" / "mug_1+halftone_1" / "00.png")
    with open_view(OFFLINE, folder, "a", configured("direct")) as view:
        view.finish()
    [run] = runs_of(folder)
    [large] = [image for image, *_ in run.table("images")["data"] if image["path"].endswith(".jpg")]
    assert (large["width"], large["height"]) == (512, 384)


def test_failed_run_is_marked_and_next_of_process_is_its_own(tmp_path: Path) -> None:
    folders = [tmp_path / "sweep" / "direct-none-s0", finished(tmp_path / "sweep" / "duolora-none-s0", "duolora")]
    folders[0].mkdir()
    with pytest.raises(RuntimeError), open_view(OFFLINE, folders[0], "a", configured("direct")) as view:
        view.curves("personalize", "mug_1", {"loss": [1.0]})
        raise RuntimeError("out of memory")
    with open_view(OFFLINE, folders[1], "b", configured("duolora")) as view:
        view.finish()
    [[failed], [whole]] = map(runs_of, folders)
    assert failed.exit_code == 1 and whole.exit_code == 0
    assert "personalize/mug_1/loss" in failed.summary and "personalize/mug_1/loss" not in whole.summary


def test_resumed_run_continues_and_is_there_once(tmp_path: Path) -> None:
    folder = finished(tmp_path / "sweep" / "direct-none-s0")
    attempts = []
    for whole in (False, False, True):
        view = open_view(OFFLINE, folder, "a", configured("direct"))
        view.curves("personalize", "mug_1", {"loss": [1.0, 0.5]})  # loaded from the store the second time
        if whole:
            view.finish()
        view.close(failed=not whole)
        [run] = runs_of(folder)
        attempts.append(run)
        if len(attempts) == 2:
            (run.folder / f"run-{run.id}.wandb.synced").touch()
            run.folder.rename(run.folder.with_name(f"kept-{run.folder.name}"))
    assert len({run.id for run in attempts}) == 1 and all(path.is_file() for path in run.files["images"].values())
    assert [row["step"] for row in attempts[-1].history if "personalize/mug_1/loss" in row] == [0, 1]
    [kept] = (folder / "wandb").glob("kept-*")
    assert list(kept.glob("*.synced"))


def test_curve_that_was_half_online_is_logged_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = open_view(OFFLINE, finished(tmp_path / "sweep" / "direct-none-s0"), "a", configured("direct"))
    assert isinstance(view, WandbView)
    logged: list[dict] = []
    monkeypatch.setattr(view.run, "log", logged.append)
    view.known = {"merge/a/loss": 0.1, "merge/b/loss": 0.7, "step": 0}  # as stored by W&B: a is complete, b is not
    for name, losses in (("a", [0.9, 0.2, 0.1]), ("b", [0.7, 0.6, 0.5]), ("c", [0.3, 0.2])):
        view.curves("merge", name, {"loss": losses})
    view.close(failed=True)
    assert logged == [
        {"step": 1, "merge/b/loss": 0.6}, {"step": 2, "merge/b/loss": 0.5},
        {"step": 0, "merge/c/loss": 0.3}, {"step": 1, "merge/c/loss": 0.2},
    ]  # fmt: skip


def test_uploaded_files_are_kept_and_other_settings_are_another_run(tmp_path: Path) -> None:
    folder = finished(tmp_path / "sweep" / "direct-none-s0")
    open_view(OFFLINE, folder, "a", configured("direct")).close(failed=True)
    [first] = runs_of(folder)
    (first.folder / f"run-{first.id}.wandb.synced").touch()
    open_view(OFFLINE, folder, "b", configured("direct")).close(failed=True)
    assert first.folder.is_dir()
    ids = {run.id for run in runs_of(folder)}
    assert len(ids) == 2 and first.id in ids


def test_run_of_several_methods_says_whose_numbers_they_are(tmp_path: Path) -> None:
    folder = finished(tmp_path / "sweep" / "compare-s0")
    manifest = json.loads((folder / "manifest.json").read_text())
    own = [{"method": name, "ablation": "none", "costs": {"merge_seconds": 2.0}} for name in ("direct", "duolora")]
    manifest = {key: value for key, value in manifest.items() if key not in ("method", "ablation", "costs")}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"rows": own}))
    with open_view(OFFLINE, folder, "a", configured("direct")) as view:
        view.finish()
    [run] = runs_of(folder)
    assert run.summary["summary/direct/dino/content"] == 0.5 and run.summary["costs/duolora/merge_seconds"] == 2.0
    assert run.config["method"] == ["direct", "duolora"]


def test_settings_are_flat() -> None:
    config = {"lora": {"name": "default", "optimizer": {"lr": 0.1}}, "pairs": [{"a": 1}], "store": None}
    assert flat(config) == {"lora": "default", "lora/optimizer/lr": 0.1, "pairs": [{"a": 1}], "store": None}


def test_csv(tmp_path: Path) -> None:
    with open_view(LoggerSpec("csv"), tmp_path) as view:
        assert isinstance(view, CsvView)
        view.curves("merge", "mug_1+ink_1", {"cycle": [2.0, 1.5]})
        view.curves("merge", "mug_1+ink_1", {"content": [3.0]})
        view.finish()
    assert (tmp_path / "curves.csv").read_text().splitlines() == [
        "stage,name,term,step,value",
        "merge,mug_1+ink_1,content,0,3.0",
        "merge,mug_1+ink_1,cycle,0,2.0",
        "merge,mug_1+ink_1,cycle,1,1.5",
    ]


def test_none_writes_nothing(tmp_path: Path) -> None:
    with open_view(LoggerSpec("none"), tmp_path) as view:
        assert not isinstance(view, CsvView | WandbView) and isinstance(view, View)
        view.curves("merge", "mug_1+ink_1", {"cycle": [2.0]})
        view.finish()
    assert not list(tmp_path.iterdir())


def test_curves_keep_what_lightning_logs(tmp_path: Path) -> None:
    curves = Curves()
    for step, loss in enumerate((1.0, 0.5)):
        curves.log_metrics({"loss": loss, "epoch": 0.0}, step)
    curves.write(tmp_path)
    assert json.loads((tmp_path / "curves.json").read_text()) == {"loss": [1.0, 0.5]}


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({"WANDB_MODE": "disabled"}, "none"), ({"WANDB_MODE": "off"}, "none"), ({"WANDB_MODE": " OFF "}, "none"),
        ({"WANDB_DISABLED": "true"}, "none"), ({"WANDB_MODE": ""}, "wandb"), ({"WANDB_MODE": "dryrun"}, "wandb"),
        ({}, "wandb"),
    ],
)  # fmt: skip
def test_environment_may_disable_wandb(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], kind: str) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert logger_of(OmegaConf.create({"logger": OmegaConf.structured(OFFLINE)})).kind == kind


def test_unknown_mode_of_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match="WANDB_MODE=sometimes must be online, offline or disabled; use"):
        logger_of(OmegaConf.create({"logger": OmegaConf.structured(OFFLINE)}))


OPENS = """
import sys
from pathlib import Path
from lorabench.base import UserError
from lorabench.config.schemas import LoggerSpec
from lorabench.report.loggers.views import open_view
try:
    open_view(LoggerSpec("wandb"), Path(sys.argv[1])).__exit__(None, None, None)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"WANDB_BASE_URL": "not a url"}, "WANDB_BASE_URL must be correct"),
        ({"WANDB_MODE": "", "WANDB_BASE_URL": "", "WANDB_CONSOLE": " "}, ""),
    ],
)
def test_environment_of_wandb_gives_one_line_or_none(tmp_path: Path, variables: dict[str, str], line: str) -> None:
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, "-c", OPENS, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == bool(line) and done.stdout.startswith(line)
