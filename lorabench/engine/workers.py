"""Worker processes for independent jobs. Each process runs one job at a time and has its own few threads.

A job is any picklable callable that takes a progress function. Its results must not depend on the process, so that they
are the same for any number of workers. Processes are spawned, because CUDA and threads do not survive a fork. They live
until the pool is closed, so that a model is loaded once, and end by themselves when their parent dies.
"""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from lorabench.base import UserError
from lorabench.engine.environment import clear_environment

Progress = Callable[[int], None]  # called with the number of finished steps of the job
Call = Callable[[Progress], None]

REPORT_EVERY = 0.2  # seconds between two messages of one worker


class WorkerError(RuntimeError):
    """The traceback of a failed job in its worker, as the cause of the exception that the job raised."""


class Pool:
    """Context manager for worker processes.

    Leaving it kills the processes, for whatever reason it is left. Lightning would only set a flag on a gentler signal
    and look at it during training; the store survives a kill.

    Args:
        count: Number of processes; 0 runs the jobs in this process.
        threads: torch's threads per process.
        environment: Variables of the processes, such as CUDA_VISIBLE_DEVICES. They are set before CUDA is initialized.
    """

    def __init__(self, count: int, threads: int, environment: Mapping[str, str] | None = None) -> None:
        self.count = count
        self.threads = threads
        self.environment = dict(environment or {})
        self.workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()
        self.workers.clear()

    def run(self, jobs: Sequence[Call], progress: Callable[[int, int], None]) -> Iterator[int]:
        """Run the jobs and yield the index of each finished one, in any order.

        Args:
            jobs: The jobs.
            progress: Called with the index of a job and the number of its finished steps.

        Raises:
            Exception: The exception of a job, caused by a WorkerError; RuntimeError if it cannot be pickled.
            UserError: If the system killed a worker.
            WorkerError: If a worker ended otherwise.
        """
        if self.count == 0:
            use_threads(self.threads)
            for index, job in enumerate(jobs):
                job(lambda steps, index=index: progress(index, steps))
                yield index
            return
        while len(self.workers) < min(self.count, len(jobs)):
            self.workers.append(_Worker.start(self.threads, self.environment))
        waiting = deque(enumerate(jobs))
        idle = list(self.workers)
        busy: dict[Any, tuple[_Worker, int]] = {}  # by connection
        while waiting or busy:
            while waiting and idle:
                index, job = waiting.popleft()
                worker = idle.pop()
                worker.send(job)
                busy[worker.connection] = (worker, index)
            for connection in wait(list(busy)):
                worker, index = busy[connection]
                kind, value = worker.receive()
                if kind == "progress":
                    progress(index, value)
                elif kind == "done":
                    idle.append(worker)
                    del busy[connection]
                    yield index
                else:
                    error, text = value
                    raise (error or RuntimeError("a job failed in a worker process")) from WorkerError(text)


@dataclass(frozen=True)
class _Worker:
    process: Any
    connection: Any

    @classmethod
    def start(cls, threads: int, environment: dict[str, str]) -> "_Worker":
        context = spawning()
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, threads, environment), daemon=True)
        process.start()
        theirs.close()  # so that reading here ends when the process dies
        return cls(process, ours)

    def send(self, job: Call) -> None:
        try:
            self.connection.send(job)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self.death() from error

    def receive(self) -> tuple[str, Any]:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self.death() from error

    def death(self) -> Exception:
        """Return the exception for a process that has ended."""
        self.process.join(10)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return UserError(
                "a worker process was killed, most likely for want of memory; run the same command with fewer at a "
                "time (trainer.workers=1) or a smaller batch: finished artifacts are kept"
            )
        if code in (0, -signal.SIGTERM):  # Lightning ends with 0 after SIGTERM
            return UserError("a worker process was ended from outside; run the same command to resume")
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with code {code}"
        return WorkerError(f"a worker process ended {how}")


def spawning() -> Any:
    """Return multiprocessing's context that spawns processes, also in a job of joblib's launcher.

    The default start method there is joblib's own, which a spawned process cannot adopt because it does not know it.
    """
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("spawn", force=True)
    return multiprocessing.get_context("spawn")


def _serve(connection: "Connection[Any, Any]", threads: int, environment: dict[str, str]) -> None:
    """Run jobs from the connection until it is closed."""
    # Ctrl-C and a scheduler's warnings reach all processes of the group; the parent handles them and ends us.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    clear_environment()
    os.environ.update(environment, OMP_NUM_THREADS=str(threads))  # before the first job imports numpy and torch
    use_threads(threads)
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        try:
            job: Call = pickle.loads(message)
            job(_throttled(connection))
            connection.send(("done", None))
        except BrokenPipeError:
            return
        except Exception as error:
            connection.send(("failed", (_portable(error), traceback.format_exc())))


def _portable(error: Exception) -> Exception | None:
    """Return the exception if it can be pickled with its type (an OSError also with its errno and file), else None."""
    try:
        return error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else None
    except Exception:  # the constructor of an unknown exception may raise anything
        return None


def _throttled(connection: Any) -> Progress:
    last = 0.0

    def report(steps: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > REPORT_EVERY:
            last = now
            connection.send(("progress", steps))

    return report


def use_threads(threads: int) -> None:
    """Set torch's number of threads."""
    import torch

    torch.set_num_threads(threads)
