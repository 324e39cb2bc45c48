"""The ranks of one run, seen from one of them: what they tell each other.

torch's process group (gloo) is there for messages alone, never for gradients: what a rank computes follows from its
items, so the results are the same for any number of ranks. To all stage code, and to Lightning, a rank is an ordinary
single process: the variables by which it could be known for one are taken away.
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

# Waiting is no failure: a rank may train a LoRA for hours while another has nothing left to do.
PATIENCE = timedelta(days=7)
LOST = 77  # exit code of a rank whose others are gone
GRACE = 10.0  # seconds in which the agent ends the ranks beside a failed one, whose own error is the one to show
FAILED = "failed"
VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "SLURM_PROCID",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """rank: of `size`, over all nodes.  board: counters that all ranks and nodes see.  place: host and port of it."""

    rank: int
    size: int
    board: Store
    place: tuple[str, int]

    @classmethod
    @contextmanager
    def join(cls) -> Iterator[Group]:
        """The group that torch's launcher has made this process a rank of."""
        told = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        rank, size = int(told["RANK"]), int(told["WORLD_SIZE"])
        place = told["MASTER_ADDR"], int(told["MASTER_PORT"])
        board = board_at(*place)
        over = threading.Event()
        if int(told["GROUP_WORLD_SIZE"]) > 1:
            threading.Thread(target=watch_nodes, args=(board_at(*place), over), daemon=True).start()
        dist.init_process_group("gloo", store=PrefixStore("group", board), rank=rank, world_size=size, timeout=PATIENCE)
        group = cls(rank, size, board, place)
        yield group  # not reached after an error: the process ends, and with it the group
        group.barrier()
        over.set()
        group.barrier()  # the first to go may take the board with it
        dist.destroy_process_group()

    def told(self, value: Any = None) -> Any:
        """What rank 0 says, in every rank."""
        said = [value]
        with surviving():
            dist.broadcast_object_list(said, src=0)
        return said[0]

    def barrier(self) -> None:
        with surviving():
            dist.barrier()

    def add(self, counter: str, amount: int) -> int:
        """The counter with the amount; 0 reads it."""
        with surviving():
            return self.board.add(counter, amount)

    def claim(self, what: str, count: int) -> Iterator[int]:
        """Numbers from 0 to `count`, each to one rank, which asks for the next when it is done with the last."""
        while (number := self.add(f"claim {what}", 1) - 1) < count:
            yield number


def board_at(host: str, port: int, patience: timedelta = PATIENCE) -> Store:
    tcp = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    return tcp(host, port, is_master=False, wait_for_workers=False, timeout=patience)


@contextmanager
def surviving() -> Iterator[None]:
    """End this rank where the others are gone, but not before the agent can: the failure of another is to be seen."""
    try:
        yield
    except RuntimeError:
        time.sleep(GRACE)
        os._exit(LOST)


def watch_nodes(board: Store, over: threading.Event) -> None:
    """End this rank when another node has failed, or the node that keeps the board is gone."""
    while not over.wait(1.0):
        try:
            failed = board.check([FAILED])
        except RuntimeError:
            failed = True
        if failed and not over.wait(1.0):
            os._exit(LOST)


def watch_parent(parent: int) -> None:
    """End this process when its parent has."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
