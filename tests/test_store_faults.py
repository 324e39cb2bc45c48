"""The store under faults: several processes, locks, full disks and read-only folders."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from errno import ENOLCK
from pathlib import Path

import pytest
from artifacts import artifact
from test_store import write

from lorabench.base import UserError
from lorabench.engine.record import files_of
from lorabench.engine.store import DRAFTS, INTACT, LOCKS, Store
from lorabench.engine.store_commands import main

PARTS = {"lr": 0.1, "images": ["a", "b"]}


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    store, made = Store(tmp_path), []

    def slowly(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)
        write(folder)

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: store.get_or_make(artifact("merge", PARTS), slowly), range(4)))
    assert len(made) == 1
    assert len(set(paths)) == 1


def test_killed_in_middle_is_made_by_next(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from lorabench.engine.artifact import Artifact
from lorabench.engine.store import Store
def stuck(folder):
    (folder / "half.txt").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
Store(Path(sys.argv[1])).get_or_make(Artifact("merge", "", 1, {"lr": 0.1, "images": ["a", "b"]}, stuck), stuck)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store(tmp_path)
    assert store.find(artifact("merge", PARTS)) is None
    assert files_of(store.get_or_make(artifact("merge", PARTS), write)) == ["deep/result.txt", "key.json"]


def test_eight_processes_make_each_artifact_once(tmp_path: Path) -> None:
    code = r"""
import os, sys, time
from pathlib import Path
from lorabench.engine.artifact import Artifact
from lorabench.engine.store import Store
root, go = Path(sys.argv[1]), Path(sys.argv[2])
store = Store.open(root)
log = os.open(root.parent / "made", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def make(number):
    def fill(folder):
        os.write(log, b"%d\n" % number)
        time.sleep(0.01)
        (folder / "file").write_text(str(number))
    return fill
def make_all(drafts):
    for key, folder in drafts.items():
        os.write(log, f"{key}\n".encode())
        (folder / "file").write_text(key)
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
for number in range(20):
    store.get_or_make(Artifact("single", "", 1, {"n": number}, make), make(number))
store.get_or_make_all([Artifact("together", "", 1, {"n": number}, make) for number in range(10)], make_all)
"""
    go = tmp_path / "go"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "store"), str(go)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    go.touch()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    made = (tmp_path / "made").read_text().split()
    assert len(made) == len(set(made)) == 30
    assert main(["check", "--store", str(tmp_path / "store")]) == 0


def test_hundreds_at_once_and_failure_keeps_none(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path), [artifact("merge", {"n": number}) for number in range(300)]
    asked = []

    def fill(drafts: dict[str, Path]) -> None:
        asked.append(len(drafts))
        for folder in drafts.values():
            write(folder)

    def fail(drafts: dict[str, Path]) -> None:
        fill(drafts)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.get_or_make_all(wanted, fail)
    assert not any(store.find(each) for each in wanted)
    store.get_or_make(wanted[5], write)
    store.get_or_make_all([*wanted, wanted[0]], fill)
    store.get_or_make_all(wanted, fail)  # is not called
    assert asked == [300, 299] and all(store.find(each) for each in wanted)


def test_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(ENOLCK, os.strerror(ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\).*use store="):
        Store.open(tmp_path)


@pytest.mark.parametrize("failure", [None, RuntimeError("a library's own words"), UserError("a file is broken")])
def test_deleted_in_middle(tmp_path: Path, failure: Exception | None) -> None:
    store = Store.open(tmp_path / "store")

    def vanish(folder: Path) -> None:
        shutil.rmtree(store.root)
        if failure:
            raise failure
        write(folder)

    with pytest.raises(UserError, match=r"stored files in .*store were deleted; run the same command again"):
        store.get_or_make(artifact("merge", PARTS), vanish)

    def read(folder: Path) -> None:
        shutil.copy(store.root / "personalize" / "lora.safetensors", folder)

    def misread(folder: Path) -> None:
        try:
            read(folder)
        except OSError:
            raise UserError("the LoRA is broken") from None

    for made_of in (read, misread):  # missing inputs
        with pytest.raises(UserError, match="were deleted"):
            store.get_or_make(artifact("merge", PARTS), made_of)
    assert store.get_or_make(artifact("merge", PARTS), write) == store.find(artifact("merge", PARTS))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 300 kB."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.getuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_harms_nothing(mounted: Path) -> None:
    import torch
    from safetensors.torch import save_file

    store = Store.open(mounted / "store")
    kept = store.get_or_make(artifact("merge", PARTS), write)
    much = torch.zeros(200_000)

    def write_bytes(folder: Path) -> None:
        (folder / "file").write_bytes(bytes(800_000))

    ways = [
        write_bytes,
        lambda folder: save_file({"w": much}, folder / "w"),
        lambda folder: torch.save(much, folder / "w"),
    ]
    for number, fill in enumerate(ways):
        with pytest.raises(UserError, match=r"no space is left to write .*the same command again"):
            store.get_or_make(artifact("merge", {"n": number}), fill)
    assert store.find(artifact("merge", PARTS)) == kept and not list((store.root / DRAFTS).iterdir())
    store.get_or_make(artifact("merge", {"n": 0}), write)


def test_read_only_store_can_be_read(mounted: Path) -> None:
    kept = Store.open(mounted).get_or_make(artifact("merge", PARTS), write)
    (mounted / INTACT / kept.name).unlink()  # as another machine would find it
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    store = Store.open(mounted)
    assert store.find(artifact("merge", PARTS)) == store.get_or_make(artifact("merge", PARTS), write) == kept
    with pytest.raises(UserError, match=r"cannot write to .*Read-only file system; use output=.*store="):
        store.get_or_make(artifact("merge", {"n": 1}), write)


def test_lock_that_gc_removed_under_waiting_process_still_keeps_two_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock("k"), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: store.lock("k").acquire())
        time.sleep(0.2)
        (tmp_path / LOCKS / "k.lock").unlink()
    held = waiting.result()
    assert (tmp_path / LOCKS / "k.lock").exists()
    held.lock.release()
