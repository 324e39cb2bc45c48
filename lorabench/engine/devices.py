"""Claims on GPUs, so that runs on one machine do not share a GPU by accident.

A claim is a file lock per GPU, named by the GPU's UUID, in a folder that all our processes of a user share. The system
releases it when its holder ends, for whatever reason. `claim` does not initialize CUDA, because that would fix the
GPUs that child processes see.
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
SETTLED: set[str] = set()  # GPUs that this process has claimed for itself; models that it keeps stay there
EVERY = 0.5  # seconds between two attempts to claim a GPU


@contextmanager
def claim(accelerator: str, count: int, visible: Callable[[], dict[str, str]] | None = None) -> Iterator[list[str]]:
    """Hold `count` GPUs that no other claim of this user on this machine holds. Waits until enough are free.

    Args:
        accelerator: "cpu", "gpu" or "auto".
        count: Number of GPUs.
        visible: Replacement of `gpus`, for tests.

    Yields:
        Entries for `CUDA_VISIBLE_DEVICES` of the processes that use the GPUs; nothing if there is none or for "cpu".

    Raises:
        UserError: If this process sees fewer than `count` GPUs.
    """
    devices = {} if accelerator == "cpu" else (visible or gpus)()
    if not devices:
        yield []
        return
    if count > len(devices):
        raise UserError(f"{count} GPUs are requested and {len(devices)} are here; use trainer.devices={len(devices)}")
    with ExitStack() as held:
        yield gather(devices, count, held)


@contextmanager
def claim_here(accelerator: str, visible: Callable[[], dict[str, str]] | None = None) -> Iterator[list[str]]:
    """Hold one GPU for this process itself and make it the device "cuda". Arguments and yield are those of `claim`."""
    devices = {} if accelerator == "cpu" else (visible or gpus)()
    mine = {device: name for device, name in devices.items() if device in SETTLED} or devices
    with claim(accelerator, 1, lambda: mine) as held:
        if held:
            import torch

            SETTLED.update(held)
            torch.cuda.set_device(list(devices).index(held[0]))  # CUDA counts them in this order
        yield held


def gather(devices: dict[str, str], count: int, held: ExitStack) -> list[str]:
    """Lock the first `count` devices that are free, in the order given, and return them.

    Processes queue for this, because two that each hold half of the GPUs they need would wait forever.

    Args:
        devices: UUIDs by their names in `CUDA_VISIBLE_DEVICES`.
        count: Number of devices to lock.
        held: Stack that releases the locks.
    """
    folder = lock_folder()
    taken: list[str] = []
    is_announced = False
    with ExitStack() as queue:
        queued = False
        while len(taken) < count:
            queued = queued or take(folder / "queue.lock", queue)
            for device, name in devices.items():
                if queued and device not in taken and len(taken) < count and take(folder / f"{name}.lock", held):
                    taken.append(device)
            if len(taken) < count:
                if not is_announced:
                    print(f"waiting for {count} of {len(devices)} GPUs, in use by other runs", file=sys.stderr)
                    is_announced = True
                time.sleep(EVERY)
    return sorted(taken, key=list(devices).index)


def take(file: Path, held: ExitStack) -> bool:
    """Lock the file until `held` closes; return False if another process has locked it."""
    try:
        held.enter_context(FileLock(file).acquire(blocking=False))
    except Timeout:
        return False
    return True


def lock_folder() -> Path:
    """Return the folder of the locks: LORABENCH_DEVICES, or a temporary folder of this user on this machine.

    It must not be on a shared file system, since other machines have other GPUs.
    """
    chosen = os.environ.get("LORABENCH_DEVICES")
    folder = Path(chosen or Path(tempfile.gettempdir(), f"lorabench-devices-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def gpus() -> dict[str, str]:
    """Return the UUIDs of the GPUs that this process may use, by their entries in `CUDA_VISIBLE_DEVICES`.

    Only the UUID identifies a GPU: a scheduler may number the GPUs of each job from 0.
    """
    import torch

    count = torch.cuda.device_count()  # respects CUDA_VISIBLE_DEVICES; asks NVML, which does not initialize CUDA
    chosen = os.environ.get(VISIBLE)
    entries = [str(number) for number in range(count)] if chosen is None else chosen.replace(" ", "").split(",")[:count]
    if not entries:
        return {}
    names = uuids()
    return {entry: full_name(entry, names) for entry in entries}


def uuids() -> dict[str, str]:
    """Return the UUIDs of this machine's GPUs by number, from `nvidia-smi`; empty if that is missing."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = (line.partition(",") for line in output.splitlines())
    return {number.strip(): uuid.strip() for number, _, uuid in lines}


def full_name(entry: str, names: dict[str, str]) -> str:
    """Return the UUID for an entry of CUDA_VISIBLE_DEVICES (a number, a UUID or the beginning of one), else the entry.

    >>> names = {"0": "GPU-8932f937", "1": "GPU-21ab0c55"}
    >>> full_name("1", names), full_name("GPU-89", names), full_name("MIG-5c1e", names)
    ('GPU-21ab0c55', 'GPU-8932f937', 'MIG-5c1e')
    """
    if entry in names:
        return names[entry]
    return next((uuid for uuid in names.values() if uuid.startswith(entry)), entry).replace("/", "-")


def device_name(accelerator: str) -> str:
    """Return the device "cuda" or "cpu".

    Raises:
        UserError: If `accelerator` is "gpu" and there is no GPU.
    """
    import torch

    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            'trainer.accelerator=gpu, but PyTorch finds no GPU here; use trainer=cpu (in Python device="cpu")'
        )
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
