"""Several rows in one run: one folder and one table; failed rows are listed and do not affect the others."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from errno import EROFS
from pathlib import Path

import pandas as pd
import pytest
from conftest import CPU
from hydra import compose
from omegaconf import DictConfig
from rank_jobs import broken, fine, item, plan_at

from lorabench.engine.failures import Incomplete
from lorabench.engine.garbage import artifact_folders, reachable
from lorabench.engine.make import make
from lorabench.engine.record import sha256
from lorabench.engine.store import Store
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.methods.ziprank import ZipRank
from lorabench.merging.presets import fitting_presets
from lorabench.report import write_joint_report
from lorabench.report.folder import RunFolder
from lorabench.report.imported import CHECKSUMS
from lorabench.sampling.rules.switch import Switch
from lorabench.tasks import benchmark as pipeline
from lorabench.tasks.benchmark import at_one_node
from lorabench.tasks.compare import rows_of, run
from lorabench.tasks.rows import name_of
from lorabench.tasks.run_folder import RunWriter

PAIR = "mug_1+ink_1"
SMALL = [
    "task=compare", "trainer.workers=0", "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", "dataset.references=1",
    "dataset.content_images=1", "dataset.style_images=1", "generate.images=1", "lora.steps=1", "task.fit_steps=1",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("hydra")


@pytest.fixture
def folder_of(tmp_path: Path) -> Path:
    return tmp_path / "run"


def configured(tiny: list[str], output: Path, rows: str, *more: str) -> DictConfig:
    output.mkdir(exist_ok=True)
    return compose("config", [*tiny, *SMALL, f"output={output}", f"task.rows={rows}", *more])


def test_rows_of_one_run_are_told_apart_everywhere(tiny, tmp_path: Path, folder_of: Path, capsys, monkeypatch) -> None:
    cfg = configured(tiny, folder_of, "[direct,ziprank,duolora no_cycle]")
    run(cfg, folder_of)
    labels = ["base", "content_only", "style_only", "direct", "ziprank", "duolora no_cycle", "oracle"]
    table = pd.read_csv(folder_of / "table.csv")
    assert [label for label in table["method"] if not str(label).startswith("↳")] == labels
    folders = {"base", "content_only", "style_only", "oracle", "direct", "ziprank", "duolora-no_cycle"}
    assert {path.name for path in (folder_of / "images").iterdir()} == folders
    assert {path.name for path in (folder_of / "merged").iterdir()} == {"direct", "ziprank", "duolora-no_cycle"}
    runs = RunFolder.load_all(folder_of)
    assert [each.label for each in runs] == ["direct", "ziprank", "duolora no_cycle"]
    for number, each in enumerate(runs):
        shared = set() if number else {*labels[:3], "oracle"}  # rows of the folder, which are read once
        assert {picture.label for picture in each.pictures} == {each.label, *shared}
        assert all(picture.path.is_file() for picture in each.pictures)
    manifest = json.loads((folder_of / "manifest.json").read_text())
    report = {"table.md", "table.csv", "table.tex", "comparisons.csv", "grid.png", "report.html"}
    assert set(manifest["files"]) - set(manifest[CHECKSUMS]) == report
    assert all(sha256(folder_of / file) == digest for file, digest in manifest[CHECKSUMS].items())
    made = {path.name for path in artifact_folders(Store(Path(cfg.store)))}
    assert made and made <= reachable(Store(Path(cfg.store)), [folder_of])  # also those of baselines and oracle
    parameters = [each.manifest["costs"]["learned_parameters"] for each in runs]
    assert parameters[0] == 0 and parameters[1] == parameters[2] > 0
    assert [set(each.losses) for each in runs] == [set(), {PAIR}, {PAIR}]
    assert "method" not in (folder_of / "config.yaml").read_text().split("\n")[0]
    capsys.readouterr()
    before = (folder_of / "scores.parquet").stat().st_mtime_ns
    run(cfg, folder_of)
    assert "duolora no_cycle" in capsys.readouterr().out
    assert (folder_of / "scores.parquet").stat().st_mtime_ns == before
    is_done, first = RunWriter.is_done, [False]
    with monkeypatch.context() as patched:  # another process finishes the run after this one has looked
        patched.setattr(RunWriter, "is_done", lambda self, logger: first.pop() if first else is_done(self, logger))
        patched.setattr(RunWriter, "assemble", None)
        run(cfg, folder_of)
    assert not first and "duolora no_cycle" in capsys.readouterr().out
    write_joint_report([folder_of], tmp_path / "again")
    assert (tmp_path / "again" / "table.csv").read_text() == (folder_of / "table.csv").read_text()


def test_failing_row_is_listed_and_others_are_reported(tiny, folder_of: Path, capsys, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no steps to take turns in")

    cfg = configured(tiny, folder_of, "[direct,lora_switch,ziprank]")
    with monkeypatch.context() as patched:
        patched.setattr(Switch, "scales", broken)
        patched.setattr(ZipRank, "check", broken)
        with pytest.raises(Incomplete) as end:
            run(cfg, folder_of)
    out, failure = capsys.readouterr().out, str(end.value)
    assert "| direct |" in out and "lora_switch" not in out
    assert failure.splitlines()[0] == "2 of 7 rows failed"
    assert f"lora_switch: generate of lora_switch {PAIR}: ZeroDivisionError: no steps to take turns in" in failure
    assert "ziprank: ZeroDivisionError" in failure  # found before anything was trained
    log = Path(failure.rpartition("turns in (")[2].partition(")")[0])
    assert log.parent == Path("failed") and "in broken" in (folder_of / log).read_text()
    assert failure.endswith(f"logs are in {folder_of}")
    assert "key" not in json.loads((folder_of / "manifest.json").read_text())  # not done
    run(cfg, folder_of)
    assert [each.label for each in RunFolder.load_all(folder_of)] == ["direct", "lora_switch", "ziprank"]
    assert not (folder_of / "failed").exists()


@pytest.mark.parametrize("logged", [True, False])
def test_failure_with_logs_ends_one_artifact_only(tmp_path: Path, logged: bool) -> None:
    store, logs = Store.open(tmp_path / "store"), tmp_path / "failed"
    with nullcontext() if logged else pytest.raises(ValueError, match="ours"):
        make(store, CPU, [item(0, broken), item(1, fine)], logs=logs if logged else None)
    assert [store.find(item(number, fine)) is not None for number in range(2)] == [False, logged]
    assert ("ValueError: ours" in (logs / f"{item(0, fine).key}.txt").read_text()) if logged else not logs.exists()


def test_of_several_nodes_one_goes_on(tmp_path: Path, lora_spec, monkeypatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(pipeline, "make", lambda store, trainer, artifacts: made.append(trainer.nodes))
    plan = plan_at(tmp_path, replace(CPU, devices=1, nodes=2), lora_spec)
    one_node = at_one_node(plan, [])
    assert (made, one_node.trainer.nodes) == ([2], 1)
    assert at_one_node(one_node, []) is one_node and made == [2]


def test_one_process_at_time_fills_run_folder(tmp_path: Path, lora_spec, monkeypatch) -> None:
    plan, inside = plan_at(tmp_path, CPU, lora_spec), []

    def fill(number: int) -> None:
        with RunWriter(tmp_path / "run", plan, "").locked():
            inside.append(number)
            time.sleep(0.1)
            assert inside.pop() == number and not inside

    with ThreadPoolExecutor() as threads:
        list(threads.map(fill, range(3)))

    def forbid(path: str, *_: object) -> None:
        raise OSError(EROFS, "Read-only file system", path)

    monkeypatch.setattr("filelock._unix.os.open", forbid)
    fill(0)


def test_all_is_every_method_with_every_ablation_that_fits() -> None:
    rows = rows_of("all", fit_steps=2)
    names = [name_of(row) for row in rows]
    assert {"direct", "custom_weights", "duolora_released", "duolora no_cycle"} <= set(names)
    assert {f"{method} output_masks" for method in fitting_presets("output_masks")} <= set(names)
    assert not {"base", "content_only", "oracle", "direct no_cycle"} & set(names)
    assert len(names) == len(set(names)) > 80
    assert "duolora uniform" in names and "ties" in names and "ties uniform" not in names  # has no masks to average
    learned = [row.own.merge for row in rows if isinstance(row.own.merge, LearnedMasks)]
    assert {merge.fit.steps for merge in learned} == {2}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("[]", "task.rows is empty; use task.rows="),
        ("null", "task.rows is empty; use task.rows="),
        ("[direct,duolra]", "method=duolra is unknown, did you mean duolora"),
        ("[direct no_cycel]", "ablation=no_cycel is unknown, did you mean no_cycle"),
        ("[direct no_cycle]", "ablation=no_cycle changes settings that direct does not have; use method=<duolora"),
        ("[direct,direct none]", "task.rows names direct twice"),
        ("[content_only]", "is in every table; leave it out"),
        ("[ties uniform]", "ablation=uniform changes settings that ties does not have"),
        ("[direct uniform]", "direct has single pairs; use dataset.contents="),
    ],
)
def test_mistakes_are_one_line(refused, rows: str, words: str) -> None:
    refused(run, [*SMALL, f"task.rows={rows}"], words)
