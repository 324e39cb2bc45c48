"""The ranks of one run, and the messages between them.

torch's process group (gloo) serves for messages only, never for gradients: the result of a rank depends only on its
items, so results are equal for any number of ranks. The environment variables that mark a process as a rank are
removed, so that stages and Lightning run as in an ordinary single process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

# A long timeout: a rank may train a LoRA for hours while another one has finished and waits.
PATIENCE = timedelta(days=7)
LOST = 77  # exit code of a rank that has lost the other ranks
GRACE = 10.0  # seconds for the agent to end the other ranks after one failed, so that the first error is shown
FAILED = "failed"
VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "SLURM_PROCID",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """One rank of a run.

    Args:
        rank: Number of this rank among all nodes.
        size: Number of ranks.
        board: Key-value store of all ranks and nodes.
        place: Host and port of the key-value store.
    """

    rank: int
    size: int
    board: Store
    place: tuple[str, int]

    @classmethod
    @contextmanager
    def join(cls) -> Iterator[Group]:
        """Join the group to which torch's launcher has assigned this process; yield it, and leave it at the end."""
        variables = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        place = variables["MASTER_ADDR"], int(variables["MASTER_PORT"])
        board = board_at(*place)
        over = threading.Event()
        if int(variables["GROUP_WORLD_SIZE"]) > 1:
            threading.Thread(target=watch_nodes, args=(board_at(*place), over), daemon=True).start()
        dist.init_process_group("gloo", store=PrefixStore("group", board), rank=rank, world_size=size, timeout=PATIENCE)
        group = cls(rank, size, board, place)
        yield group  # after an error the next lines are not reached: the process ends and leaves the group
        group.barrier()
        over.set()
        group.barrier()  # the first rank that ends may take the key-value store with it
        dist.destroy_process_group()

    def broadcast(self, value: Any = None) -> Any:
        """Return the value of rank 0 in every rank."""
        values = [value]
        with surviving():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        with surviving():
            dist.barrier()

    def add(self, counter: str, amount: int) -> int:
        """Add to a counter that all ranks share and return its new value; an amount of 0 reads it."""
        with surviving():
            return self.board.add(counter, amount)

    def claim(self, name: str, count: int) -> Iterator[int]:
        """Yield numbers below `count`. Each number goes to one rank, the first that asks for another one."""
        while (number := self.add(f"claim {name}", 1) - 1) < count:
            yield number


def board_at(host: str, port: int, patience: timedelta = PATIENCE) -> Store:
    """Connect to the key-value store of a group."""
    tcp = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    return tcp(host, port, is_master=False, wait_for_workers=False, timeout=patience)


@contextmanager
def surviving() -> Iterator[None]:
    """End this rank if the other ranks are gone, after a pause in which the agent can report the error of another."""
    try:
        yield
    except RuntimeError:
        time.sleep(GRACE)
        os._exit(LOST)


def watch_nodes(board: Store, over: threading.Event) -> None:
    """End this rank when another node has failed, or when the node with the key-value store is gone."""
    while not over.wait(1.0):
        try:
            failed = board.check([FAILED])
        except RuntimeError:
            failed = True
        if failed and not over.wait(1.0):
            os._exit(LOST)


def watch_parent(parent: int) -> None:
    """End this process when its parent process ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
