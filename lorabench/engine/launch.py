"""Start the ranks of a run on this machine with torch's elastic launcher, which connects them with other nodes.

Hydra runs only in the parent process, which passes the artifacts to the ranks. A rank that fails ends the run: torch's
agent ends the other ranks of its node, the shared key-value store those of other nodes. The first error is shown.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lorabench.config.schemas import TrainerSpec
from lorabench.engine.artifact import Artifact
from lorabench.engine.bar import Bar
from lorabench.engine.devices import VISIBLE, claim, device_name
from lorabench.engine.rank_errors import MEET, cause, failure
from lorabench.engine.store import Store, key_of
from lorabench.engine.together import serve

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

CLOSE = 5  # seconds for ranks to end before they are killed
SHOW_EVERY = 1.0  # seconds between two searches for new artifacts in the store
LAUNCHES = 0  # launches in this process; each needs its own rendezvous

Show = Callable[[Artifact], None]
Groups = Sequence[Sequence[Artifact]]  # see artifact.waves


def make_by_ranks(store: Store, trainer: TrainerSpec, groups: Groups, show: Show | None, extra: float) -> None:
    """Compute missing artifacts by ranks. See `make` for the arguments.

    With several nodes it returns on the node that has rank 0 and ends the processes of the others.
    """
    device_name(trainer.accelerator)  # raises UserError if there is no such device
    artifacts = [each for group in groups for each in group]
    lacking = [each for each in artifacts if store.find(each) is None]
    waiting = deque(artifacts if show else [])
    with Bar(sum(each.cost for each in lacking) + extra) as bar:
        if lacking or trainer.nodes > 1:
            with claim(trainer.accelerator, trainer.devices) as gpus:
                ranks = launch(store, trainer, groups, gpus, Watcher(bar, store, waiting, show))
            if 0 not in ranks:
                bar.clear()
                print("this node's share is done; another node, which has rank 0, shows the results")
                sys.exit(0)
        while waiting and show:
            show(waiting.popleft())
        bar.finish()


class Watcher:
    """Observes a run: updates the bar, and shows each artifact in order once it is in the store."""

    def __init__(self, bar: Bar, store: Store, waiting: deque[Artifact], show: Show | None) -> None:
        self.bar, self.store, self.waiting, self.show, self.looked = bar, store, waiting, show, 0.0

    def reach(self, stage: str, finished: int, count: int, work: float) -> None:
        """Set the text and the progress of the bar.

        Args:
            stage: Stage of the current group.
            finished: Number of its finished artifacts.
            count: Number of its artifacts.
            work: Finished work in the units of the bar.
        """
        self.bar.describe(stage, finished, count)
        self.bar.reach(work)

    def look(self) -> None:
        """Show the artifacts that are new in the store, at most once per second."""
        if not self.show or time.monotonic() - self.looked < SHOW_EVERY:
            return
        self.looked = time.monotonic()
        while self.waiting and self.store.find(self.waiting[0]):
            self.show(self.waiting.popleft())


def launch(store: Store, trainer: TrainerSpec, groups: Groups, gpus: list[str], watcher: Watcher) -> set[int]:
    """Run the ranks of this machine and wait for their end.

    Args:
        store: The store.
        trainer: Devices, nodes and rendezvous.
        groups: Artifacts of each stage.
        gpus: Reserved GPUs, one per rank; empty on a CPU.
        watcher: Progress bar.

    Returns:
        The numbers of the ranks.

    Raises:
        UserError: If a rank was killed, if it raised one, or if the nodes did not meet.
        RuntimeError: If a rank failed with another error.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    place: tuple[str, int] | None = None
    before = set(multiprocessing.active_children())
    with tempfile.TemporaryDirectory(prefix="lorabench-ranks-") as logs, environment(trainer, gpus):
        agent = Agent(launch_config(trainer, groups, logs, gpus), store, trainer, groups, theirs)
        agent.start()
        try:
            while agent.is_alive() or ours.poll():
                if ours.poll(0.2):
                    message = ours.recv()
                    if len(message) == 2:
                        place = message
                    else:
                        watcher.reach(*message)
                watcher.look()
        finally:
            end = time.monotonic() + 2 * CLOSE
            while agent.is_alive() and time.monotonic() < end:  # Ctrl-C; the agent may still be starting ranks
                for child in set(multiprocessing.active_children()) - before:
                    child.kill()  # as in workers.Pool
                agent.join(0.1)
    if agent.error is not None:
        if trainer.nodes > 1 and place is not None:
            tell_nodes(place)
        raise failure(agent.error, trainer) from cause(agent.error)
    return agent.ranks


class Agent(threading.Thread):
    """Thread of torch's agent, which starts and watches the ranks of this machine.

    Ctrl-C must reach the main thread only. The signal is blocked in this thread, and the ranks inherit that, so they
    cannot be interrupted while they start.
    """

    def __init__(self, config: LaunchConfig, *arguments: Any) -> None:
        super().__init__(daemon=True)
        self.config, self.arguments = config, arguments
        self.ranks: set[int] = set()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Start the ranks, wait for their end, and keep their error."""
        from torch.distributed.launcher.api import elastic_launch

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.ranks = set(elastic_launch(self.config, serve)(*self.arguments))
        except BaseException as error:  # raised in the main thread
            self.error = error


def launch_config(trainer: TrainerSpec, groups: Groups, logs: str, gpus: list[str]) -> LaunchConfig:
    """Return the settings of torch's launcher."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    global LAUNCHES
    LAUNCHES += 1
    hush()
    run = key_of("launch", {"keys": [[each.key for each in group] for group in groups]})
    endpoint = trainer.rendezvous if trainer.nodes > 1 and trainer.rendezvous else "localhost:0"
    here = endpoint.startswith(("localhost:", "127.0.0.1:"))
    config = LaunchConfig(
        min_nodes=trainer.nodes,
        max_nodes=trainer.nodes,
        nproc_per_node=trainer.devices,
        run_id=f"lorabench-{LAUNCHES}" if trainer.nodes > 1 else run,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        rdzv_configs={"join_timeout": MEET, "read_timeout": MEET},
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        local_addr="localhost" if here else None,  # the machine's name may not resolve to an address
        virtual_local_rank=bool(gpus),  # each rank sees its own GPU only
        shutdown_timeout=CLOSE,
    )
    config.numa_options = None  # they would initialize CUDA
    return config


@contextmanager
def environment(trainer: TrainerSpec, gpus: list[str]) -> Iterator[None]:
    """Set the environment variables that the ranks inherit, and restore the environment afterwards."""
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(trainer.threads)
    os.environ["LOGLEVEL"] = "CRITICAL"  # torch's launcher must not repeat our message
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if gpus:
        os.environ[VISIBLE] = ",".join(gpus)
    if trainer.nodes == 1 and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def hush() -> None:
    """Silence torch's launcher, in which every module has a logger with its own handler."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def tell_nodes(place: tuple[str, int]) -> None:
    """Make the ranks of other nodes end, too."""
    from lorabench.engine.group import FAILED, board_at

    with suppress(RuntimeError):  # the node with the key-value store is gone, which the others notice themselves
        board_at(*place, timedelta(seconds=CLOSE)).set(FAILED, "")
