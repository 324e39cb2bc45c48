"""The commands of a store: its content, differences of keys, and files that can be deleted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from errno import EROFS
from pathlib import Path

import pytest
from artifacts import artifact
from test_store import write

from lorabench.base import UserError
from lorabench.engine.differences import why
from lorabench.engine.garbage import garbage, remove
from lorabench.engine.store import DIGESTS, DRAFTS, INTACT, LOCKS, Store
from lorabench.engine.store_commands import main


def run_of(store: Store, folder: Path, rank: int) -> tuple[Path, Path, Path]:
    """Return a run folder whose manifest has a merge, the merge, and its LoRA."""
    trained = artifact("personalize", {"lora": {"rank": rank}, "seed": 0})
    lora = store.get_or_make(trained, write)
    merge = store.get_or_make(artifact("merge", {"prompt": "a sks mug"}, inputs={"loras": [trained]}), write)
    folder.mkdir()
    keys = {"personalize": {"mug_1": lora.name}, "merge": {"mug_1+ink_1": merge.name}}
    (folder / "manifest.json").write_text(json.dumps({"keys": keys}))
    return folder, merge, lora


def test_why_names_parts_that_differ(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = store.get_or_make(artifact("merge", {"lora": {"rank": 4, "lr": 1}}), write)
    right = store.get_or_make(artifact("merge", {"lora": {"rank": 8, "lr": 1}, "seed": 0}), write)
    assert why(left, right) == ["lora.rank: 4 -> 8", "seed: absent -> 0"]
    with pytest.raises(UserError, match="not an artifact"):
        why(left, tmp_path)


def test_why_takes_runs_and_beginnings_of_keys(tmp_path: Path, capsys) -> None:
    store = Store(tmp_path / "store")
    (one, merge, lora), (other, *_) = (run_of(store, tmp_path / f"run{rank}", rank) for rank in (4, 8))
    at = ["--store", str(store.root)]
    assert main(["why", str(one), str(other), *at]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"personalize mug_1: {lora.name} -> ")
    assert lines[1] == "    lora.rank: 4 -> 8"
    assert lines[2].startswith("merge mug_1+ink_1: ") and lines[3].startswith(f"    loras.0: {lora.name} -> ")
    assert lines[4:] == ["        lora.rank: 4 -> 8"]
    assert main(["why", f"merge/{merge.name[:8]}", merge.name[:8], *at]) == 0
    assert capsys.readouterr().out == "the keys are equal\n"
    assert main(["why", str(one), merge.name, *at]) == main(["why", "zz", "zz", *at]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_run_of_several_methods_needs_and_names_what_its_rows_do(tmp_path: Path, capsys) -> None:
    store = Store(tmp_path / "store")
    for rank in (4, 8):
        run, *made = run_of(store, tmp_path / f"run{rank}", rank)
        old(store, *made)
        keys = json.loads((run / "manifest.json").read_text())["keys"]
        row = {"label": "duolora no_cycle", "keys": {"merge": keys.pop("merge")}}
        (run / "manifest.json").write_text(json.dumps({"rows": [row], "keys": keys}))
    at = ["--store", str(store.root)]
    assert main(["gc", "--unused", str(tmp_path), *at]) == 0
    assert "unused" not in capsys.readouterr().out
    assert main(["why", str(tmp_path / "run4"), str(tmp_path / "run8"), *at]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("personalize mug_1: ") and lines[2].startswith("merge duolora no_cycle: mug_1+ink_1: ")


def test_manifest_that_cannot_be_read_is_no_reason_to_remove_what_it_names(tmp_path: Path, capsys) -> None:
    store = Store(tmp_path / "store")
    run, *made = run_of(store, tmp_path / "run", 4)
    old(store, *made)
    command = ["gc", "--delete", "--unused", str(tmp_path), "--store", str(store.root)]
    for spoil in (lambda file: file.write_text("{"), lambda file: (file.unlink(), file.symlink_to(file))):
        spoil(run / "manifest.json")
        assert main(command) == 2 and all(path.is_dir() for path in made)
        output = capsys.readouterr().err
        assert output.startswith(f"error: {run / 'manifest.json'} cannot be read (") and output.count("\n") == 1


def test_what_was_made_or_found_anew_meanwhile_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    damaged, unused = (store.get_or_make(artifact("merge", {"n": number}), write) for number in range(2))
    old(store, damaged, unused)
    (damaged / "deep" / "result.txt").unlink()
    found = list(garbage(store, days=7))
    assert {each.why for each in found if each.path.is_dir()} == {"damaged", "unused"}
    store.get_or_make(artifact("merge", {"n": 0}), write)
    assert store.find(artifact("merge", {"n": 1}))
    assert not any(remove(store, each) for each in found if each.path.is_dir())
    assert store.find(artifact("merge", {"n": 0})) and store.find(artifact("merge", {"n": 1}))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"stage": "merge", "parts": {}}', '{"stage": "merge", "files": {}}']
)
def test_spoilt_key_is_damage_and_no_traceback(tmp_path: Path, capsys, text: str) -> None:
    store = Store(tmp_path)
    path = store.get_or_make(artifact("merge", {"n": 0}), write)
    (path / "key.json").write_text(text)
    at = ["--store", str(tmp_path)]
    assert main(["check", *at]) == 1
    assert capsys.readouterr().out == f"damaged: merge/{path.name} (key.json)\n1 artifacts read, 1 damaged\n"
    assert main(["ls", *at]) == 0
    assert capsys.readouterr().out == "0 artifacts, 0 B; 1 damaged; run python -m lorabench.engine check\n"


def test_store_that_may_only_be_read_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    def forbid(path: str, *_: object) -> None:
        raise OSError(EROFS, "Read-only file system", path)

    (tmp_path / DRAFTS / ("0" * 32)).mkdir(parents=True)
    monkeypatch.setattr("filelock._unix.os.open", forbid)
    assert main(["gc", "--delete", "--store", str(tmp_path)]) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"error: cannot write to {tmp_path}/.locks/") and output.count("\n") == 1
    assert output.strip().endswith("use --store <a store that you can write to>")


def test_ls_says_what_there_is(tmp_path: Path, capsys) -> None:
    run_of(Store(tmp_path / "store"), tmp_path / "run", 4)
    assert main(["ls", "merge", "--store", str(tmp_path / "store")]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert line.startswith("merge ") and line.endswith("merge") and total == "1 artifacts, 4 B"
    assert main(["ls", "--store", str(tmp_path / "nowhere")]) == 2


def old(store: Store, *artifacts: Path) -> None:
    for path in artifacts:
        week_ago = time.time() - 8 * 86400
        os.utime(store.root / INTACT / path.name, (week_ago, week_ago))


def test_gc_takes_what_nobody_needs_and_leaves_rest(tmp_path: Path, capsys) -> None:
    store, at = Store(tmp_path / "store"), ["--store", str(tmp_path / "store")]
    run, merge, lora = run_of(store, tmp_path / "runs", 4)
    stray, fresh = (store.get_or_make(artifact("merge", {"n": number}), write) for number in range(2))
    old(store, merge, lora, stray)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    store.digest(model)
    for part in (DRAFTS, ".partial"):
        write_in = store.root / part / ("0" * 32)
        write_in.mkdir(parents=True)
        (write_in / "half").write_text("half")
    (store.root / INTACT / ("1" * 32)).write_text("{}")

    assert main(["gc", *at]) == 0  # only lists the files
    output = capsys.readouterr().out
    assert "draft of a killed run" in output and "--delete" in output and "unused" not in output
    assert (store.root / DRAFTS / ("0" * 32)).is_dir()

    with store.lock("0" * 32):  # somebody works on it
        in_use = [sys.executable, "-m", "lorabench.engine", "gc", "--delete", *at]
        assert "3 in use, kept" in subprocess.run(in_use, capture_output=True, text=True, check=True).stdout
        assert (store.root / DRAFTS / ("0" * 32)).is_dir() and not (store.root / INTACT / ("1" * 32)).exists()
    shutil.rmtree(model)
    assert main(["gc", "--delete", "--unused", str(run), *at]) == 0
    assert [stray.exists(), fresh.exists(), merge.exists(), lora.exists()] == [False, True, True, True]
    left = [list((store.root / part).iterdir()) for part in (DRAFTS, ".partial", DIGESTS)]
    assert not any(left) and not list((store.root / LOCKS).glob("*.lock"))
    capsys.readouterr()
    assert main(["gc", "--delete", "--unused", str(run), "--older-than", "0", *at]) == 0
    assert not fresh.exists() and merge.exists()
    assert store.get_or_make(artifact("merge", {"n": 1}), write).is_dir()
