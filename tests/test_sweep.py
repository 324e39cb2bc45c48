"""The joint report at the end of a sweep: of its own finished runs, wherever the jobs ran and whatever failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_run import make_run

from lorabench.report.sweep import report

# A program of Hydra's whose runs are made up, failing as lorabench.cli does (exit codes) or with an exception.
APP = """
import os, sys
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
sys.path.insert(0, {tests!r})
from made_run import PAIRS, make_run

@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
def app(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.method in cfg.broken:
        if cfg.method == "raising":
            raise ValueError("a fault")
        return 2
    if not (folder / "manifest.json").is_file():
        make_run(folder, cfg.method, pairs=PAIRS[:2], images=1, seed=cfg.seed)

app()
"""
CONFIG = """
method: direct
seed: 0
name: sweep
broken: []
hydra:
  output_subdir: null
  run: {dir: "%(root)s/${name}/${method}-s${seed}"}
  sweep: {dir: "%(root)s/${name}", subdir: "${method}-s${seed}"}
  callbacks: {joint: {_target_: lorabench.report.sweep.JointReport}}
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "config.yaml").write_text(CONFIG % {"root": tmp_path})
    file = tmp_path / "app.py"
    file.write_text(APP.format(tests=str(Path(__file__).parent), conf=str(conf)))
    return file


def start(program: Path, *overrides: str) -> tuple[int, str, str]:
    command = [sys.executable, str(program), "-m", "hydra/job_logging=none", "hydra/hydra_logging=none", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=program.parent)
    return done.returncode, done.stdout, done.stderr


def rows(folder: Path) -> list[str]:
    frames = {"base", "content_only", "style_only", "oracle"}
    return [name for name in pd.read_csv(folder / "table.csv")["method"] if name not in frames]


def test_a_sweep_ends_with_one_table(program: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "stale-s0", "ziprank", images=1)  # of an earlier sweep
    code, out, err = start(program, "method=direct,duolora")
    assert code == 0, err
    folder = tmp_path / "sweep"
    assert rows(folder) == ["direct", "duolora"]
    assert (folder / "table.md").read_text() in out and out.strip().endswith(str(folder / "report.html"))
    assert not list(folder.glob(".sweep-*"))
    before = (folder / "report.html").read_bytes()
    assert start(program, "method=direct,duolora")[0] == 0  # runs that were found done
    assert (folder / "report.html").read_bytes() == before


def test_one_table_a_folder_in_the_order_of_the_jobs(program: Path, tmp_path: Path) -> None:
    code, out, err = start(program, "name=b,a", "method=duolora,direct", "seed=0,1")
    assert code == 0, err
    for name in ("a", "b"):
        assert rows(tmp_path / name) == ["duolora", "direct"]
        scores = pd.read_csv(tmp_path / name / "table.csv", index_col="method")
        assert scores.loc["duolora", "learned_parameters"] == 12288
    assert out.count("report.html") == 2 and not (tmp_path / "sweep" / "table.md").exists()


def test_a_failed_run_does_not_hide_the_finished_ones(program: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    make_run(tmp_path / "sweep" / "ziplora-s0", "ziplora", images=1)  # done once with other settings
    code, out, err = start(program, "method=direct,ziplora,duolora", "broken=[ziplora]")
    assert code == 2 and "1 of 3 runs failed" in err
    assert rows(tmp_path / "sweep") == ["direct", "duolora"] and "| duolora |" in out


def test_a_single_run_and_a_sweep_of_one_have_no_joint_report(program: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert start(program, "method=direct")[:2] == (0, "")
    assert not (tmp_path / "sweep" / "table.md").exists() and not list((tmp_path / "sweep").glob(".sweep-*"))


def test_a_stopped_sweep_leaves_no_register(program: Path, tmp_path: Path) -> None:
    code, _, _ = start(program, "method=direct,raising", "broken=[raising]")
    assert code != 0 and (tmp_path / "sweep" / "direct-s0").is_dir()
    assert not list((tmp_path / "sweep").glob(".sweep-*"))


def test_runs_that_cannot_be_compared_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name, name, images=1) for name in ("direct", "duolora")]
    scores = pd.read_parquet(runs[1] / "scores.parquet")
    scores.assign(world="2").to_parquet(runs[1] / "scores.parquet")
    report(runs)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "differ in world" in printed.err


def test_two_runs_in_one_folder_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", images=1)
    report([run, run])
    printed = capsys.readouterr()
    assert printed.out == "" and "2 runs went to" in printed.err
