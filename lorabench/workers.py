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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from lorabench.errors import UserError

Progress = Callable[[int], None]  # called with the steps of the job done so far
Job = Callable[[Progress], None]

REPORT_EVERY = 0.2  # seconds between two messages of one worker


class WorkerError(RuntimeError):
    """A job failed; the message is the traceback of its worker."""


class Pool:
    """`count` processes of `threads` torch threads each; a count of 0 runs the jobs in this process.

    A context manager: leaving it, for whatever reason, ends the processes.
    """

    def __init__(self, count: int, threads: int) -> None:
        self.count = count
        self.threads = threads
        self.workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()
        self.workers.clear()

    def run(self, jobs: Sequence[Job], progress: Callable[[int, int], None]) -> Iterator[int]:
        """Yield the index of each job when it is done, in any order; calls progress(index, steps done so far).

        Raises UserError as the job raised it, WorkerError for any other failure or a process that died.
        """
        if self.count == 0:
            use_threads(self.threads)
            for index, job in enumerate(jobs):
                job(lambda steps, index=index: progress(index, steps))
                yield index
            return
        while len(self.workers) < min(self.count, len(jobs)):
            self.workers.append(_Worker.start(self.threads))
        waiting = deque(enumerate(jobs))
        idle = [worker.connection for worker in self.workers]
        busy: dict[Any, int] = {}
        while waiting or busy:
            while waiting and idle:
                index, job = waiting.popleft()
                connection = idle.pop()
                connection.send(job)
                busy[connection] = index
            for connection in wait(list(busy)):
                kind, value = _receive(connection)
                if kind == "progress":
                    progress(busy[connection], value)
                elif kind == "done":
                    idle.append(connection)
                    yield busy.pop(connection)
                else:
                    raise value if kind == "mistake" else WorkerError(value)


@dataclass(frozen=True)
class _Worker:
    process: Any
    connection: Any

    @classmethod
    def start(cls, threads: int) -> "_Worker":
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        process.start()
        theirs.close()  # so that its death is an end of file here
        return cls(process, ours)


def _receive(connection: Any) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return "failed", "a worker process was killed, most likely for want of memory; type trainer.workers=1"


def _serve(connection: "Connection[Any, Any]", threads: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before numpy and torch come in with the first job
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
        except UserError as error:
            connection.send(("mistake", error))
        except Exception:
            connection.send(("failed", traceback.format_exc()))


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
