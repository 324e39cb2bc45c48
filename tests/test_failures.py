"""Messages of system failures: the cause and the fix only."""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, ENOSPC, EROFS
from pathlib import Path

import pytest
from artifacts import artifact
from omegaconf import OmegaConf
from test_store import write

from lorabench.engine import failures
from lorabench.engine.failures import Failed, Incomplete, system_fault
from lorabench.engine.output_folder import INCOMPLETE, OutputFolder
from lorabench.engine.store import Store
from lorabench.tasks import cli


def test_what_may_not_be_read_is_told_from_what_may_not_be_written(tmp_path: Path, monkeypatch) -> None:
    photo = tmp_path / "photos" / "1.jpg"
    error = PermissionError(EACCES, "Permission denied", str(photo))
    line = system_fault(error, "/store")
    assert line == f"cannot write to {photo}: Permission denied; use output=<a folder you can write to>, and {STORE}"
    monkeypatch.setattr(failures.os, "access", lambda file, mode: str(file) != str(tmp_path))  # whoever runs this test
    assert system_fault(error, "/store") == f"cannot read {photo}: Permission denied; make it readable, or {ANOTHER}"
    assert "cannot write" in str(system_fault(OSError(EROFS, "Read-only file system", "/usr/x"), "/store"))
    assert "no space is left" in str(system_fault(OSError(ENOSPC, "No space", str(photo)), "/store"))


STORE = "store= if you gave one"
ANOTHER = "use another file"


def test_file_that_artifact_never_had_is_no_deletion(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.get_or_make(artifact("merge", {"n": 0}), write)

    def fault(file: Path) -> str | None:
        return system_fault(FileNotFoundError(2, "No such file or directory", str(file)), str(tmp_path))

    assert fault(path / "never.json") is None
    (path / "deep" / "result.txt").unlink()
    gone = f"stored files in {tmp_path} were deleted; run the same command again to recompute them"
    assert fault(path / "never.json") == fault(tmp_path / "score" / "0" / "scores.parquet") == gone
    (tmp_path / ".drafts" / "0").mkdir(parents=True)
    assert fault(tmp_path / ".drafts" / "0" / "part") is None and fault(tmp_path / ".drafts" / "1" / "part") == gone
    assert fault(tmp_path / "elsewhere") == gone and fault(Path("/elsewhere")) is None


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch) -> Callable[[BaseException], tuple[Failed | None, str]]:
    """Return the result of a run that raises an error."""

    def attempt(error: BaseException) -> tuple[Failed | None, str]:
        def run(*_: object) -> None:
            raise error

        there = OmegaConf.create({"runtime": {"output_dir": str(tmp_path / "run")}, "job": {"name": "run"}})
        monkeypatch.setattr(cli.HydraConfig, "get", lambda: there)
        monkeypatch.setattr(cli, "validate", lambda cfg: None)
        monkeypatch.setattr(cli, "method_of", lambda cfg: None)
        monkeypatch.setattr("lorabench.tasks.params.run", run)
        return cli.attempt(OmegaConf.create({"task": {"name": "params"}, "store": str(tmp_path / "store")}))

    return attempt


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_traceback_of_fault_is_there_for_who_asks(wanted: str, attempt, monkeypatch, capsys) -> None:
    monkeypatch.setenv(cli.TRACEBACK, wanted)
    failed, text = attempt(OSError(ENOSPC, "No space left on device", "/full/x"))
    assert failed and failed.code == 2 and "raise error" in text
    err = capsys.readouterr().err
    assert ("Traceback" in err) == (wanted == "1") and err.splitlines()[-1].startswith("error: no space is left")


def test_run_of_which_some_failed_does_not_end_sweep(attempt, tmp_path: Path, capsys) -> None:
    why = "1 of 2 rows failed\n  direct: no"
    assert attempt(Incomplete(why)) == (Failed(1, "1 of 2 rows failed"), why)
    assert OutputFolder(tmp_path / "run").manifest()[INCOMPLETE] == "1 of 2 rows failed"
    assert capsys.readouterr().err == f"error: {why}\n"
