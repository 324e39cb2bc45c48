"""The store: artifacts are complete or absent, computed once, and found by their inputs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from artifacts import artifact

from lorabench.base import UserError
from lorabench.engine.record import files_of, is_whole, key_of, sha256
from lorabench.engine.store import Store
from lorabench.engine.store_commands import main

PARTS = {"lr": 0.1, "images": ["a", "b"]}


def write(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "result.txt").write_text("made")


def test_makes_once_and_finds_again(tmp_path: Path) -> None:
    store, made = Store(tmp_path), []
    for _ in range(2):
        path = store.get_or_make(artifact("merge", PARTS), lambda folder: (write(folder), made.append(folder))[0])
    assert len(made) == 1
    assert files_of(path) == ["deep/result.txt", "key.json"]
    assert store.find(artifact("merge", dict(reversed(PARTS.items())))) == path


def test_key_is_order_free_and_tells_stages_and_values_apart() -> None:
    assert key_of("merge", {"a": 1, "b": {"c": 2, "d": 3}}) == key_of("merge", {"b": {"d": 3, "c": 2}, "a": 1})
    changed = {**PARTS, "images": ["b", "a"]}
    keys = [artifact(*of).key for of in (("merge", PARTS), ("score", PARTS), ("merge", changed))]
    assert len(set(keys)) == 3


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        write(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.get_or_make(artifact("merge", PARTS), fail)
    assert store.find(artifact("merge", PARTS)) is None
    assert not list((tmp_path / ".drafts").iterdir())
    assert store.get_or_make(artifact("merge", PARTS), write) == store.find(artifact("merge", PARTS))


def test_stage_that_makes_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="made no file"):
        Store(tmp_path).get_or_make(artifact("merge", PARTS), lambda folder: None)


def test_damaged_artifact_is_recomputed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.get_or_make(artifact("merge", PARTS), write)
    (path / "deep" / "result.txt").write_text("")
    assert not is_whole(path)
    store.get_or_make(artifact("merge", PARTS), write)
    assert (path / "deep" / "result.txt").read_text() == "made"


def test_digest_follows_weights_and_not_place(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name, weight in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "model.safetensors").write_bytes(weight)
        (tmp_path / name / "config.json").write_text(json.dumps({}))
    (tmp_path / "a" / "README.md").write_text("a model card")
    a, b, c = (store.digest(tmp_path / name) for name in "abc")
    assert a == b != c
    (tmp_path / "a" / "unet" / "model.safetensors").write_bytes(b"22")
    assert store.digest(tmp_path / "a") != a


def test_digest_of_files_has_all_of_them(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "merges.txt.gz"
    digests = set()
    for content in (b"1", b"22"):
        file.write_bytes(content)
        digests.add(store.digest(file, tmp_path / "merges.txt.gz"))
    assert len(digests) == 2


def flip(file: Path, keep_time: bool) -> None:
    """Flip a bit in the middle of a file."""
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    if keep_time:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_flipped_bit_is_found_and_artifact_made_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.get_or_make(artifact("merge", PARTS), write)
    flip(path / "deep" / "result.txt", keep_time=False)
    assert is_whole(path) and store.find(artifact("merge", PARTS)) is None
    store.get_or_make(artifact("merge", PARTS), write)
    assert (path / "deep" / "result.txt").read_text() == "made"


def test_bit_that_rots_is_found_by_check(tmp_path: Path, capsys) -> None:
    store = Store(tmp_path)
    path = store.get_or_make(artifact("merge", PARTS), write)
    flip(path / "deep" / "result.txt", keep_time=True)
    assert store.find(artifact("merge", PARTS)) == path  # only the bytes differ
    assert main(["check", "--store", str(tmp_path)]) == 1
    assert f"damaged: merge/{path.name} (deep/result.txt)" in capsys.readouterr().out
    assert store.find(artifact("merge", PARTS)) is None
    store.get_or_make(artifact("merge", PARTS), write)
    assert main(["check", "--store", str(tmp_path)]) == 0
    assert "1 artifacts read, 0 damaged" in capsys.readouterr().out


def test_another_key_in_record_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.get_or_make(artifact("merge", PARTS), write)
    record = (path / "key.json").read_text()
    (path / "key.json").write_text(record.replace("0.1", "0.2"))
    assert store.find(artifact("merge", PARTS)) is None


def test_unchanged_file_is_hashed_once(tmp_path: Path, monkeypatch) -> None:
    store, hashed = Store(tmp_path), []
    path = store.get_or_make(artifact("merge", PARTS), write)
    monkeypatch.setattr("lorabench.engine.record.sha256", lambda file: hashed.append(file.name) or sha256(file))
    for _ in range(3):
        assert store.find(artifact("merge", PARTS)) == path
    assert not hashed  # it was hashed as it was made
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    for _ in range(3):
        assert Store(tmp_path.with_name("copy")).find(artifact("merge", PARTS))
    assert hashed == ["result.txt"]


def test_artifact_without_checksums_goes_by_its_sizes(tmp_path: Path, capsys) -> None:
    store = Store(tmp_path)
    path = store.get_or_make(artifact("merge", PARTS), write)
    record = json.loads((path / "key.json").read_text())
    del record["sha256"]
    (path / "key.json").write_text(json.dumps(record))
    flip(path / "deep" / "result.txt", keep_time=False)
    assert store.find(artifact("merge", PARTS)) == path
    assert main(["check", "--store", str(tmp_path)]) == 0
    assert "1 of an older version have no checksums" in capsys.readouterr().out


def test_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(UserError, match="must be a folder; use store="):
            Store.open(place)
