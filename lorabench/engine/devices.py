"""GPUs are taken before they are used, so that runs side by side on one machine do not share one by accident.

A claim is a file lock for each GPU, named by the GPU's own id, in a folder that all our processes of a user share. The
system gives it back when its holder ends, however it ends. `claim` does not initialise CUDA: which GPUs a process sees
is settled when it does, and that is for the processes that the caller starts.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lorabench.base import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
SETTLED: set[str] = set()  # what this process claimed for itself: a model that it keeps stays there
EVERY = 0.5  # seconds between two looks at what is in use


@contextmanager
def claim(accelerator: str, count: int, visible: Callable[[], dict[str, str]] | None = None) -> Iterator[list[str]]:
    """Hold `count` GPUs that no other claim of this machine and user holds; waits until there are as many.

    Yields what `CUDA_VISIBLE_DEVICES` is to be in the processes that use them, an entry a GPU; nothing, at once, for
    accelerator=cpu and where there is no GPU.  visible: of `gpus`, for tests.  Raises UserError where this process sees
    fewer than `count`.
    """
    devices = {} if accelerator == "cpu" else (visible or gpus)()
    if not devices:
        yield []
        return
    if count > len(devices):
        raise UserError(f"{count} GPUs are asked for and {len(devices)} are here; use trainer.devices={len(devices)}")
    with ExitStack() as held:
        yield gather(devices, count, held)


@contextmanager
def claim_here(accelerator: str, visible: Callable[[], dict[str, str]] | None = None) -> Iterator[list[str]]:
    """Hold one GPU for this very process, in which "cuda" then means that one; arguments and yield as of `claim`."""
    devices = {} if accelerator == "cpu" else (visible or gpus)()
    mine = {device: name for device, name in devices.items() if device in SETTLED} or devices
    with claim(accelerator, 1, lambda: mine) as held:
        if held:
            import torch

            SETTLED.update(held)
            torch.cuda.set_device(list(devices).index(held[0]))  # CUDA counts them in this order
        yield held


def gather(devices: dict[str, str], count: int, held: ExitStack) -> list[str]:
    """The first `count` of the devices that can be locked, in the order given; the locks go to `held`.

    One process gathers at a time, in a queue: two that each hold half of what they want would wait for ever.
    """
    folder = lock_folder()
    taken: list[str] = []
    told = False
    with ExitStack() as queue:
        queued = False
        while len(taken) < count:
            queued = queued or take(folder / "queue.lock", queue)
            for device, name in devices.items():
                if queued and device not in taken and len(taken) < count and take(folder / f"{name}.lock", held):
                    taken.append(device)
            if len(taken) < count:
                if not told:
                    print(f"waiting for {count} of {len(devices)} GPUs, in use by other runs", file=sys.stderr)
                    told = True
                time.sleep(EVERY)
    return sorted(taken, key=list(devices).index)


def take(file: Path, held: ExitStack) -> bool:
    """Whether the lock was free; it is held until `held` closes."""
    try:
        held.enter_context(FileLock(file).acquire(blocking=False))
    except Timeout:
        return False
    return True


def lock_folder() -> Path:
    """Of this user on this machine, never on a shared file system: the temporary folder, or LORABENCH_DEVICES."""
    chosen = os.environ.get("LORABENCH_DEVICES")
    folder = Path(chosen or Path(tempfile.gettempdir(), f"lorabench-devices-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def gpus() -> dict[str, str]:
    """What `CUDA_VISIBLE_DEVICES` calls the GPUs this process may use -> their ids, equal in every process.

    A scheduler may call another GPU 0 in each job, so the number is no name.
    """
    import torch

    count = torch.cuda.device_count()  # honours CUDA_VISIBLE_DEVICES; through NVML, so CUDA stays as it is
    chosen = os.environ.get(VISIBLE)
    entries = [str(number) for number in range(count)] if chosen is None else chosen.replace(" ", "").split(",")[:count]
    if not entries:
        return {}
    names = uuids()
    return {entry: full_name(entry, names) for entry in entries}


def uuids() -> dict[str, str]:
    """Number -> UUID of this machine's GPUs, as NVIDIA's driver tells; empty where its tool is missing."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = (line.partition(",") for line in told.splitlines())
    return {number.strip(): uuid.strip() for number, _, uuid in lines}


def full_name(entry: str, names: dict[str, str]) -> str:
    """The UUID behind an entry of CUDA_VISIBLE_DEVICES: a number, a UUID or the beginning of one; else the entry.

    >>> names = {"0": "GPU-8932f937", "1": "GPU-21ab0c55"}
    >>> full_name("1", names), full_name("GPU-89", names), full_name("MIG-5c1e", names)
    ('GPU-21ab0c55', 'GPU-8932f937', 'MIG-5c1e')
    """
    if entry in names:
        return names[entry]
    return next((uuid for uuid in names.values() if uuid.startswith(entry)), entry).replace("/", "-")


def device_name(accelerator: str) -> str:
    """ "cuda" or "cpu"; UserError where a GPU is asked for and none is there."""
    import torch

    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            'trainer.accelerator=gpu, but PyTorch finds no GPU here; use trainer=cpu (in Python device="cpu")'
        )
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
