"""Worker processes: equal results for any number, the first failure ends all, dead workers are detected."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from rank_jobs import After, Predicting, broken

from lorabench.base import UserError
from lorabench.engine.workers import Pool, Progress, WorkerError, _Worker


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


def ignore(index: int, steps: int) -> None:
    return


def test_results_do_not_depend_on_number_of_workers(tmp_path: Path) -> None:
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


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Use one worker, which survives a failing job."""
    with Pool(1, threads=1, environment={"CUDA_VISIBLE_DEVICES": "3"}) as pool:
        yield pool


def test_mistake_of_user_passes_through(pool: Pool) -> None:
    for each in (pool, Pool(0, threads=1)):
        with pytest.raises(UserError, match="use that"):
            list(each.run([Fail(UserError("this is wrong; use that"))], ignore))


def test_fault_arrives_as_what_it_is_with_its_traceback(pool: Pool) -> None:
    with pytest.raises(ValueError, match="odd") as raised:
        list(pool.run([Fail(ValueError("odd"))], ignore))
    assert isinstance(raised.value.__cause__, WorkerError)
    assert "in __call__\n    raise self.error" in str(raised.value.__cause__)


def test_error_of_system_keeps_its_number_and_file(pool: Pool) -> None:
    with pytest.raises(OSError) as raised:
        list(pool.run([Fail(OSError(errno.ENOSPC, "No space left on device", "/full/file"))], ignore))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/full/file")


class Stubborn(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def raise_stubborn(progress: Progress) -> None:
    raise Stubborn("left", "right")


def test_what_cannot_be_sent_arrives_as_its_traceback(pool: Pool) -> None:
    with pytest.raises(RuntimeError) as raised:
        list(pool.run([raise_stubborn], ignore))
    assert str(raised.value.__cause__).strip().endswith("Stubborn: left")


def test_workers_take_their_environment_and_leave_scheduler_s_signals_to_parent(pool: Pool, tmp_path: Path) -> None:
    assert list(pool.run([partial(note_signals, tmp_path / "note")], ignore)) == [0]
    assert (tmp_path / "note").read_text() == "3"


def note_signals(file: Path, progress: Progress) -> None:
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    file.write_text(os.environ["CUDA_VISIBLE_DEVICES"])


def test_worker_killed_at_work_is_noticed_and_none_is_left() -> None:
    start = time.monotonic()
    with Pool(2, threads=1) as pool:
        with pytest.raises(UserError, match="want of memory; run"):
            list(pool.run([die, sleep], ignore))
        processes = [worker.process for worker in pool.workers]
    assert time.monotonic() - start < 30
    assert len(processes) == 2 and not any(process.is_alive() for process in processes)


def test_failure_ends_job_inside_lightning_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), Pool(2, threads=1) as pool:
        list(
            pool.run([partial(each(tmp_path), tmp_path) for each in (Predicting, partial(After, work=broken))], ignore)
        )
    [began] = tmp_path.iterdir()
    assert time.time() - began.stat().st_mtime < 20 and not Path(f"/proc/{began.name}").exists()


def die(progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(progress: Progress) -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [(signal.SIGKILL, UserError, "want of memory"), (signal.SIGABRT, WorkerError, "ended by SIGABRT")],
)
def test_worker_that_died_idle_is_noticed(number: int, kind: type[Exception], text: str) -> None:
    with Pool(1, threads=1) as pool:
        assert list(pool.run([], ignore)) == []
        pool.workers.append(_Worker.start(1, {}))
        os.kill(pool.workers[0].process.pid, number)
        pool.workers[0].process.join()
        with pytest.raises(kind, match=text):
            list(pool.run([sleep], ignore))
