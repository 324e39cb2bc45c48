"""Sweeps of real runs under the launchers of the extra `launch`, from any folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from commands import Commands
from hydra.errors import MissingConfigException

from lorabench.tasks.cli import missing_choice

SMALL = [
    "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", "dataset.content_images=2", "dataset.style_images=2",
    "dataset.references=2", "generate.images=1",
]  # fmt: skip


@pytest.fixture
def sweep(commands: Commands, tiny: list[str], tmp_path: Path):
    """Return a function that runs run.py on one pair in its own folder and returns (exit code, stdout, stderr)."""

    def start(*overrides: str) -> tuple[int, str, str]:
        done = commands.run(*tiny, *SMALL, f"output={tmp_path}", *overrides, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.workers=1"],  # our processes inside joblib's
        ["hydra/launcher=submitit_local", "trainer.workers=0"],
    ],
    ids=["joblib", "submitit_local"],
)
def test_failing_job_is_named_and_others_make_table(launcher: list[str], sweep, tmp_path: Path) -> None:
    code, out, err = sweep("-m", *launcher, "method=direct,base", "seed=0,-1")
    folder = tmp_path / "adhoc"
    assert code == 2 and "error: 2 of 4 runs failed:" in err, err
    log = folder / "direct-none-s-1" / "error.txt"
    assert f"  method=direct seed=-1: seed=-1 must be at least 0; use seed=0 ({log})" in err
    assert "seed=-1 must be at least 0; use seed=0" in log.read_text().splitlines()
    assert {"direct", "base"} <= set(pd.read_csv(folder / "table.csv")["method"])
    assert (folder / "table.md").read_text() in out
    made = sorted(path.parts[-3] for path in (tmp_path / "store").glob("*/*/key.json"))
    assert made.count("personalize") == 2  # shared, whichever job came first
    assert not list(folder.glob(".sweep-*")) and "Traceback" not in err


def test_launcher_that_cannot_start_is_one_line(sweep) -> None:
    code, out, err = sweep("-m", "hydra/launcher=submitit_local", "hydra.launcher.nodes=2", "seed=0,1")
    assert code == 1 and out == ""
    assert (
        err.strip().splitlines()[-1] == "error: the launcher failed: LocalExecutor can use only one node. Use nodes=1"
    )


def test_launcher_that_is_not_installed_says_how_to_install_it() -> None:
    error = MissingConfigException("no such file", "hydra/launcher/joblib", ["basic"])
    assert "run " in (line := missing_choice(error)) and line.endswith(
        "-m pip install -c constraints.txt -e '.[launch]'"
    )
    error = MissingConfigException("no such file", "hydra/launcher/job", ["basic", "joblib"])
    assert missing_choice(error).endswith("did you mean joblib? Use hydra/launcher=<basic|joblib>")
