"""What is said of a fault of the system: only what it was, and what helps."""

from __future__ import annotations

from errno import EACCES, ENOSPC, EROFS
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_store import write

from lorabench import cli, failures
from lorabench.failures import system_fault
from lorabench.store import Store


def test_what_may_not_be_read_is_told_from_what_may_not_be_written(tmp_path: Path, monkeypatch) -> None:
    photo = tmp_path / "photos" / "1.jpg"
    error = PermissionError(EACCES, "Permission denied", str(photo))
    line = system_fault(error, "/store")
    assert line == f"cannot write to {photo}: Permission denied; type output=<a folder you can write to>, and {STORE}"
    monkeypatch.setattr(failures.os, "access", lambda file, mode: str(file) != str(tmp_path))  # whoever runs this test
    assert system_fault(error, "/store") == f"cannot read {photo}: Permission denied; make it readable, or {ANOTHER}"
    assert "cannot write" in str(system_fault(OSError(EROFS, "Read-only file system", "/usr/x"), "/store"))
    assert "no space is left" in str(system_fault(OSError(ENOSPC, "No space", str(photo)), "/store"))


STORE = "store= where you gave one"
ANOTHER = "name another one"


def test_a_file_that_an_artifact_never_had_is_no_deletion(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.get_or_make("merge", {"n": 0}, write)

    def fault(file: Path) -> str | None:
        return system_fault(FileNotFoundError(2, "No such file or directory", str(file)), str(tmp_path))

    assert fault(path / "never.json") is None
    (path / "deep" / "result.txt").unlink()
    gone = f"what was stored in {tmp_path} is no more; type the same command again to make it anew"
    assert fault(path / "never.json") == fault(tmp_path / "score" / "0" / "scores.parquet") == gone
    (tmp_path / ".drafts" / "0").mkdir(parents=True)
    assert fault(tmp_path / ".drafts" / "0" / "part") is None and fault(tmp_path / ".drafts" / "1" / "part") == gone
    assert fault(tmp_path / "elsewhere") == gone and fault(Path("/elsewhere")) is None


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_the_traceback_of_a_fault_is_there_for_who_asks(wanted: str, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(ENOSPC, "No space left on device", str(tmp_path / "x"))

    cfg = OmegaConf.create({"task": {"name": "params"}, "store": str(tmp_path / "store")})
    cfg_hydra = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path)}}})
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: cfg_hydra.hydra)
    monkeypatch.setattr(cli, "validate", lambda cfg: None)
    monkeypatch.setenv(cli.TRACEBACK, wanted)
    monkeypatch.setattr("lorabench.studies.params.run", full)
    failed, text = cli.attempt(cfg)
    assert failed and failed.code == 2 and "in full" in text
    told = capsys.readouterr().err
    assert ("Traceback" in told) == (wanted == "1") and told.splitlines()[-1].startswith("error: no space is left")
