"""Independent jobs in worker processes: one job a process at a time, each process with its own few threads.

A job is any picklable callable that takes a progress function. What it computes must follow from itself alone, so
the results are the same for any number of workers. Processes are spawned (CUDA and threads do not survive a fork),
live until the pool is closed, so that a model is loaded once, and end by themselves when their parent dies.
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

Progress = Callable[[int], None]  # called with the steps of the job done so far
Job = Callable[[Progress], None]

REPORT_EVERY = 0.2  # seconds between two messages of one worker


class WorkerError(RuntimeError):
    """Of a job that failed in its worker: the traceback there, as the cause of the exception that the job raised."""


class Pool:
    """`count` processes of `threads` torch threads each; a count of 0 runs the jobs in this process.

    environment: variables of the processes, such as CUDA_VISIBLE_DEVICES; set before CUDA can be initialised there.

    A context manager: leaving it, for whatever reason, kills the processes. Nothing milder ends one inside Lightning,
    which takes a signal for a flag and looks at that only while it trains; the store survives a kill.
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

    def run(self, jobs: Sequence[Job], progress: Callable[[int, int], None]) -> Iterator[int]:
        """Yield the index of each job when it is done, in any order; calls progress(index, steps done so far).

        Raises what a job raises (RuntimeError if that cannot be sent between processes), caused by a WorkerError;
        UserError where the system killed a worker, WorkerError where it ended otherwise.
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
        theirs.close()  # so that its death is an end of file here
        return cls(process, ours)

    def send(self, job: Job) -> None:
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
        """What there is to say of a process that is no more."""
        self.process.join(10)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return UserError(
                "a worker process was killed, most likely for want of memory; run the same command with fewer at a "
                "time (trainer.workers=1) or a smaller batch: what is finished is kept"
            )
        if code in (0, -signal.SIGTERM):  # Lightning makes a 0 of SIGTERM
            return UserError("a worker process was ended from outside; use the same command to go on")
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with code {code}"
        return WorkerError(f"a worker process ended {how}")


def spawning() -> Any:
    """multiprocessing's context that spawns, also in a job of joblib's launcher.

    The default method there is joblib's own, which a spawned process would be told to adopt and does not know.
    """
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("spawn", force=True)
    return multiprocessing.get_context("spawn")


def _serve(connection: "Connection[Any, Any]", threads: int, environment: dict[str, str]) -> None:
    """The life of a worker process."""
    # Ctrl-C and a scheduler's warnings reach the whole group; they are the parent's business, which ends us.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    clear_environment()
    os.environ.update(environment, OMP_NUM_THREADS=str(threads))  # before numpy and torch come in with the first job
    use_threads(threads)
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        try:
            job: Job = pickle.loads(message)
            job(_throttled(connection))
            connection.send(("done", None))
        except BrokenPipeError:
            return
        except Exception as error:
            connection.send(("failed", (_portable(error), traceback.format_exc())))


def _portable(error: Exception) -> Exception | None:
    """The exception if it survives the way to another process, in which an OSError keeps its errno and its file."""
    try:
        return error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else None
    except Exception:  # whatever the making of a foreign exception may raise
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
    import torch

    torch.set_num_threads(threads)
