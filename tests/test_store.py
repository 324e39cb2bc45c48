"""The store: whole or absent, made once, found by what determines it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorabench.errors import UserError
from lorabench.store import Store, files_of, is_whole, key_of, why

PARTS = {"lr": 0.1, "images": ["a", "b"]}


def write(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "result.txt").write_text("made")


def test_makes_once_and_finds_again(tmp_path: Path) -> None:
    store, made = Store(tmp_path), []
    for _ in range(2):
        path = store.get_or_make("merge", PARTS, lambda folder: (write(folder), made.append(folder))[0])
    assert len(made) == 1
    assert files_of(path) == ["deep/result.txt", "key.json"]
    assert store.find("merge", dict(reversed(PARTS.items()))) == path


def test_key_is_order_free_and_tells_stages_and_values_apart() -> None:
    assert key_of("merge", {"a": 1, "b": {"c": 2, "d": 3}}) == key_of("merge", {"b": {"d": 3, "c": 2}, "a": 1})
    keys = [key_of("merge", PARTS), key_of("score", PARTS), key_of("merge", {**PARTS, "images": ["b", "a"]})]
    assert len(set(keys)) == 3


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        write(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.get_or_make("merge", PARTS, fail)
    assert store.find("merge", PARTS) is None
    assert not list((tmp_path / ".drafts").iterdir())
    assert store.get_or_make("merge", PARTS, write) == store.find("merge", PARTS)


def test_a_stage_that_makes_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="made no file"):
        Store(tmp_path).get_or_make("merge", PARTS, lambda folder: None)


def test_a_damaged_artifact_is_made_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.get_or_make("merge", PARTS, write)
    (path / "deep" / "result.txt").write_text("")
    assert not is_whole(path)
    store.get_or_make("merge", PARTS, write)
    assert (path / "deep" / "result.txt").read_text() == "made"


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    store, made = Store(tmp_path), []

    def slowly(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)
        write(folder)

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: store.get_or_make("merge", PARTS, slowly), range(4)))
    assert len(made) == 1
    assert len(set(paths)) == 1


def test_killed_in_the_middle_is_made_by_the_next(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from lorabench.store import Store
def stuck(folder):
    (folder / "half.txt").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
Store(Path(sys.argv[1])).get_or_make("merge", {"lr": 0.1, "images": ["a", "b"]}, stuck)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store(tmp_path)
    assert store.find("merge", PARTS) is None
    assert files_of(store.get_or_make("merge", PARTS, write)) == ["deep/result.txt", "key.json"]


def test_why_names_the_parts_that_differ(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = store.get_or_make("merge", {"lora": {"rank": 4, "lr": 1}}, write)
    right = store.get_or_make("merge", {"lora": {"rank": 8, "lr": 1}, "seed": 0}, write)
    assert why(left, right) == ["lora.rank: 4 -> 8", "seed: absent -> 0"]
    with pytest.raises(UserError, match="no artifact"):
        why(left, tmp_path)


def test_digest_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name, weight in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "model.safetensors").write_bytes(weight)
        (tmp_path / name / "config.json").write_text(json.dumps({}))
    (tmp_path / "a" / "README.md").write_text("a model card is no weight")
    a, b, c = (store.digest(tmp_path / name) for name in "abc")
    assert a == b != c
    (tmp_path / "a" / "unet" / "model.safetensors").write_bytes(b"22")
    assert store.digest(tmp_path / "a") != a
