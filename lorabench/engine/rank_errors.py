"""Errors of ranks and of torch's launcher, as exceptions for the parent process."""

from __future__ import annotations

import signal
from typing import Any

from lorabench.base import UserError
from lorabench.config.schemas import TrainerSpec
from lorabench.engine.workers import WorkerError

MEET = 900  # seconds that a node waits for the other nodes


def failure(error: BaseException, trainer: TrainerSpec) -> BaseException:
    """Return the exception to show for an error of the agent or of a rank."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    from lorabench.engine.group import LOST

    if isinstance(error, RendezvousError):
        return UserError(
            f"{trainer.nodes} nodes did not meet at {trainer.rendezvous}; use the same command on each within "
            f"{MEET // 60} minutes, with trainer.rendezvous=<the name of one of them>:<a free port there>"
        )
    if not isinstance(error, ChildFailedError):
        return error
    rank, first = error.get_first_failure()
    again = "finished artifacts are kept; run the same command to resume"
    if first.exitcode == LOST:
        return UserError(f"another node failed, see its output; {again}")
    if first.exitcode < 0:
        memory = ", most likely for want of memory" if first.exitcode == -signal.SIGKILL else ""
        return UserError(
            f"rank {rank} was killed by {first.signal_name()}{memory}; {again}, perhaps with fewer trainer.devices or "
            "a smaller generate.batch"
        )
    name, _, text = message_of(first)["message"].partition(": ")
    return UserError(text) if name == UserError.__name__ else RuntimeError(f"rank {rank} failed: {name}: {text}")


def cause(error: BaseException) -> BaseException | None:
    """Return the traceback of the rank that failed, or None if it left none."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not isinstance(error, ChildFailedError):
        return None
    _, first = error.get_first_failure()
    return WorkerError(message_of(first)["extraInfo"]["py_callstack"]) if first.exitcode > 0 else None


def message_of(failure: Any) -> dict[str, Any]:
    """Return the message and the traceback (in extraInfo) of an exception, as torch's agent recorded them."""
    message = failure.error_file_data["message"]
    bare = {"message": f"exit code {failure.exitcode}", "extraInfo": {"py_callstack": "no traceback"}}
    return message if isinstance(message, dict) else bare
