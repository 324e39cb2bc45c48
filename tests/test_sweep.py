"""The joint report of a sweep has its finished runs, wherever jobs ran and whatever failed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.utils import JobReturn, JobStatus
from made_run import make_run
from omegaconf import OmegaConf

from lorabench.engine.failures import Failed
from lorabench.report.sweep import JointReport, Note, report

TESTS = str(Path(__file__).parent)
# A program of Hydra's whose runs are made up, failing as lorabench.tasks.cli does (exit codes) or with an exception.
APP = """
import os, signal, sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
sys.path.insert(0, {tests!r})
from made_run import PAIRS, make_run
from lorabench.engine.failures import Failed
from lorabench.report.sweep import JointReport
from submitit.core.core import Job

Job._results_timeout_s = 1  # seconds that submitit waits for the result of a dead job

@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
def app(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.method in cfg.broken:
        if cfg.method == "raising":
            raise ValueError("a fault")
        if cfg.method == "dying":
            while not all((folder.parent / f"{name}-s0" / "manifest.json").is_file() for name in ("direct", "duolora")):
                time.sleep(0.1)
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return Failed(2, "that is wrong; use this", str(folder / "error.txt"))
    if cfg.method == cfg.slow:
        time.sleep(8)
    if not (folder / "manifest.json").is_file():
        make_run(folder, cfg.method, pairs=PAIRS[:2], images=1, seed=cfg.seed)

try:
    app()
except Exception as error:
    if JointReport.current is None:
        raise
    sys.exit(JointReport.current.broken(str(error)))
"""
CONFIG = """
method: direct
seed: 0
name: sweep
broken: []
slow: none
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
    file.write_text(APP.replace("{tests!r}", repr(TESTS)).replace("{conf!r}", repr(str(conf))))
    return file


def start(program: Path, *overrides: str) -> tuple[int, str, str]:
    command = [sys.executable, str(program), "-m", "hydra/job_logging=none", "hydra/hydra_logging=none", *overrides]
    # As lorabench.tasks.cli and run.py set them: Hydra raises and does not print, jobs elsewhere import the same
    # modules.
    path = os.pathsep.join((TESTS, str(Path(TESTS).parent)))
    env = os.environ | {"HYDRA_FULL_ERROR": "1", "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=program.parent, env=env)
    return done.returncode, done.stdout, done.stderr


def rows(folder: Path) -> list[str]:
    frames = {"base", "content_only", "style_only", "oracle"}
    methods = pd.read_csv(folder / "table.csv")["method"]
    return [name for name in methods if name not in frames and not name.startswith("↳")]  # published numbers


def test_sweep_ends_with_one_table(program: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "stale-s0", "ziprank", images=1)  # left from an earlier sweep
    code, out, err = start(program, "method=direct,duolora")
    assert code == 0, err
    folder = tmp_path / "sweep"
    assert rows(folder) == ["direct", "duolora"]
    assert (folder / "table.md").read_text() in out and out.strip().endswith(str(folder / "report.html"))
    assert not list(folder.glob(".sweep-*"))
    before = (folder / "report.html").read_bytes()
    assert start(program, "method=direct,duolora")[0] == 0  # runs that were found done
    assert (folder / "report.html").read_bytes() == before


def test_one_table_folder_in_order_of_jobs(program: Path, tmp_path: Path) -> None:
    code, out, err = start(program, "name=b,a", "method=duolora,direct", "seed=0,1")
    assert code == 0, err
    for name in ("a", "b"):
        assert rows(tmp_path / name) == ["duolora", "direct"]
        scores = pd.read_csv(tmp_path / name / "table.csv", index_col="method")
        assert scores.loc["duolora", "learned_parameters"] == 12288
    assert out.count("report.html") == 2 and not (tmp_path / "sweep" / "table.md").exists()


def test_failed_run_does_not_hide_finished_ones(program: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    make_run(tmp_path / "sweep" / "ziplora-s0", "ziplora", images=1)  # done once with other settings
    code, out, err = start(program, "method=direct,ziplora,duolora", "broken=[ziplora]")
    assert code == 2 and "1 of 3 runs failed" in err
    log = tmp_path / "sweep" / "ziplora-s0" / "error.txt"
    assert err.strip().endswith(f"  method=ziplora: that is wrong; use this ({log})")
    assert rows(tmp_path / "sweep") == ["direct", "duolora"] and "| duolora |" in out
    assert "Runs without results are left out: ziplora-s0." in out


def test_single_run_and_sweep_of_one_have_no_joint_report(program: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert start(program, "method=direct")[:2] == (0, "")
    assert not (tmp_path / "sweep" / "table.md").exists() and not list((tmp_path / "sweep").glob(".sweep-*"))


def test_stopped_sweep_leaves_no_register(program: Path, tmp_path: Path) -> None:
    code, _, err = start(program, "method=direct,raising", "broken=[raising]")
    assert code == 1 and (tmp_path / "sweep" / "direct-s0").is_dir()
    assert "method=raising: ValueError: a fault" in err
    assert not list((tmp_path / "sweep").glob(".sweep-*"))


def test_job_killed_under_joblib_is_told_beside_finished_ones(program: Path, tmp_path: Path) -> None:
    """joblib then ends its other processes and the sweep."""
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "broken=[dying]", "slow=ziplora")
    code, out, err = start(program, *launcher, "method=direct,duolora,dying,ziplora")
    assert code == 1 and "2 of 4 runs failed" in err
    for name in ("dying", "ziplora"):
        assert f"  method={name}: its process was killed" in err
    assert "the launcher ended: A worker process managed by the executor was unexpectedly terminated" in err
    assert rows(tmp_path / "sweep") == ["direct", "duolora"] and "| duolora |" in out
    assert not list((tmp_path / "sweep").glob(".sweep-*"))


def test_job_killed_under_submitit_is_told_and_others_are_waited_for(program: Path, tmp_path: Path) -> None:
    launcher = ("hydra/launcher=submitit_local", "broken=[dying]", "slow=ziplora")
    code, _, err = start(program, *launcher, "method=dying,direct,duolora,ziplora")
    assert code == 1 and "1 of 4 runs failed" in err
    line = next(line for line in err.splitlines() if line.startswith("  method=dying: its process was killed"))
    assert Path(line.partition("(")[2].rstrip(")")).is_file()
    assert rows(tmp_path / "sweep") == ["direct", "duolora", "ziplora"]


def test_scheduler_may_ask_running_job_to_pack_itself_up(tmp_path: Path) -> None:
    """submitit pickles the callback again when it restarts a job after its time limit."""
    report = JointReport()
    report.register = tmp_path
    config = OmegaConf.create({"hydra": {"job": {"num": 3}, "overrides": {"task": ["a=1"]}, "runtime": {}}})
    config.hydra.runtime.output_dir = str(tmp_path / "run")
    report.on_job_start(config)
    (file,) = report.files()
    assert report.is_running(file)
    again = pickle.loads(pickle.dumps(report))
    report.on_job_end(config, JobReturn(_return_value=None, status=JobStatus.COMPLETED))
    assert not report.is_running(file) and json.loads(file.read_text())["code"] == 0
    again.on_job_start(config)
    again.on_job_end(config, JobReturn(_return_value=Failed(2, "wrong"), status=JobStatus.COMPLETED))
    assert json.loads(file.read_text())["line"] == "wrong"


def test_runs_that_cannot_be_compared_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name, name, images=1) for name in ("direct", "duolora")]
    scores = pd.read_parquet(runs[1] / "scores.parquet")
    scores.assign(world="2").to_parquet(runs[1] / "scores.parquet")
    report(runs)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "must have the same world" in printed.err


def test_job_that_would_overwrite_another_is_refused(program: Path, tmp_path: Path) -> None:
    code, _, err = start(program, "method=direct,duolora", "slow=none,0")
    folder = tmp_path / "sweep" / "direct-s0"
    assert code == 2 and err.count("\n") == 1 and f"another run of this sweep also writes to {folder}" in err
    assert "'hydra.sweep.subdir=${task.folder}-${hydra:job.num}'" in err
    assert (folder / "manifest.json").is_file() and not (tmp_path / "sweep" / "duolora-s0").exists()


def test_report_that_fails_hides_no_failed_run(tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no rows")

    monkeypatch.setattr("lorabench.report.sweep.write_joint_report", broken)
    joint = JointReport()
    joint.register = tmp_path / "register"
    joint.register.mkdir()
    for number, name in enumerate(("direct", "duolora")):
        make_run(tmp_path / name, name, images=1)
        Note(str(tmp_path / name), [f"method={name}"], None, 0).write(joint.register / f"{number}.json")
    assert joint.finish() == 1
    Note(str(tmp_path / "ziplora"), ["method=ziplora"], None, 2, "wrong").write(joint.register / "2.json")
    assert joint.finish() == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith(
        f"error: no joint report in {tmp_path}: ZeroDivisionError: no rows; the runs are kept; run "
    )
    assert lines == ["error: 1 of 3 runs failed:", "  method=ziplora: wrong", first]


def test_two_runs_in_one_folder_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", images=1)
    report([run, run])
    printed = capsys.readouterr()
    assert printed.out == "" and "2 runs wrote to" in printed.err
