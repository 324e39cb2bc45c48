"""Worker processes: the same results for any number, the first failure ends all, a dead worker is noticed."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorabench.errors import UserError
from lorabench.workers import Pool, Progress, WorkerError


@dataclass(frozen=True)
class Write:
    folder: Path
    number: int

    def __call__(self, progress: Progress) -> None:
        import torch

        progress(1)
        noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(self.number))
        (self.folder / f"{self.number}.txt").write_text(f"{float((noise @ noise).sum())} {torch.get_num_threads()}")


@dataclass(frozen=True)
class Fail:
    error: Exception

    def __call__(self, progress: Progress) -> None:
        raise self.error


def die(progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ignore(index: int, steps: int) -> None:
    return


def test_results_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    texts = []
    seen: list[tuple[int, int]] = []
    for count in (0, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        with Pool(count, threads=1) as pool:
            jobs = [Write(folder, number) for number in range(3)]
            assert sorted(pool.run(jobs, lambda *message: seen.append(message))) == [0, 1, 2]
            assert list(pool.run([Write(folder, 3)], ignore)) == [0]
        texts.append([(folder / f"{number}.txt").read_text() for number in range(4)])
    assert {(0, 1), (1, 1), (2, 1)} == set(seen)
    assert texts[0] == texts[1]
    assert all(text.endswith(" 1") for text in texts[0])


@pytest.mark.parametrize("count", [0, 1])
def test_a_mistake_of_the_user_passes_through(count: int) -> None:
    with Pool(count, threads=1) as pool, pytest.raises(UserError, match="type that"):
        list(pool.run([Fail(UserError("this is wrong; type that"))], ignore))


def test_a_fault_brings_its_traceback_and_ends_the_workers() -> None:
    with Pool(1, threads=1) as pool:
        with pytest.raises(WorkerError, match=r"(?s)Traceback.*ValueError: odd"):
            list(pool.run([Fail(ValueError("odd"))], ignore))
        process = pool.workers[0].process
    assert not process.is_alive()


def test_a_killed_worker_is_noticed() -> None:
    start = time.monotonic()
    with Pool(1, threads=1) as pool, pytest.raises(WorkerError, match="want of memory"):
        list(pool.run([die], ignore))
    assert time.monotonic() - start < 30
