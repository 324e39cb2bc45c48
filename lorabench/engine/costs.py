"""Costs of an artifact: seconds, denoiser passes, peak memory. They are stored as cost.json with its other files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

COST_FILE = "cost.json"
SHARED = ("seconds", "denoiser_passes")  # costs that add up
COMPUTED_ON = "computed_on"  # name of the device; for a CPU also its instructions and the number of threads
SLACK = 1 << 24  # bytes: largest difference of two readings of a process's memory, as Linux counts per core


@contextmanager
def cost(folder: Path, network: nn.Module | None = None) -> Iterator[dict[str, Any]]:
    """Measure the block and write cost.json into the folder. The block may add costs to the yielded dict."""
    costs: dict[str, Any] = {}
    with measured(costs, network):
        yield costs
    (folder / COST_FILE).write_text(json.dumps(costs))


@contextmanager
def shared_cost(folders: Sequence[Path], network: nn.Module | None = None) -> Iterator[None]:
    """Measure a block that fills several folders and write cost.json into each, with an equal share of the time."""
    costs: dict[str, Any] = {}
    with measured(costs, network):
        yield
    shares = {name: value / len(folders) if name in SHARED else value for name, value in costs.items()}
    for folder in folders:
        (folder / COST_FILE).write_text(json.dumps(shares))


@contextmanager
def measured(costs: dict[str, Any], network: nn.Module | None = None) -> Iterator[None]:
    """Measure the block and write its costs into `costs`.

    seconds: wall-clock time.
    denoiser_passes: batch rows of all forward passes of `network`: four for a batch of four, two for a step of one
        image with classifier-free guidance.
    computed_on: the device. It changes the last digits of results, as do the instructions and the number of
        threads of a CPU.
    peak_gpu_bytes: maximum memory of tensors on the GPU.
    peak_bytes: maximum memory of the process, with the interpreter and its libraries; on Linux only.

    Args:
        costs: Dict to write to.
        network: The denoiser; None: its passes are not counted.
    """
    import torch

    passes = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal passes
        passes += len(inputs[0])

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    is_reset = reset_peak()
    hook = network.register_forward_pre_hook(count) if network is not None else None
    start = time.perf_counter()
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
    costs["seconds"] = time.perf_counter() - start
    costs[COMPUTED_ON] = torch.cuda.get_device_name() if on_gpu else cpu()
    if network is not None:
        costs["denoiser_passes"] = passes
    if on_gpu:
        costs["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    if is_reset:
        costs["peak_bytes"] = memory("VmHWM")


def cpu() -> str:
    """Return the instructions and the number of threads that torch uses on the CPU."""
    import torch

    return f"cpu {torch.backends.cpu.get_cpu_capability()}, threads={torch.get_num_threads()}"


def joined_costs(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the costs of work done in several parts: the maximum of peaks, and the sum of all other numbers."""
    names = [name for name in costs[0] if all(name in cost for cost in costs)]
    numbers = [name for name in names if name != COMPUTED_ON]
    found: dict[str, Any] = {
        name: (max if name.startswith("peak") else sum)(cost[name] for cost in costs) for name in numbers
    }
    if COMPUTED_ON in names:
        found[COMPUTED_ON] = "; ".join(sorted({cost[COMPUTED_ON] for cost in costs}))
    return found


def reset_peak() -> bool:
    """Reset the peak memory that Linux records for this process; return False if that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return memory("VmHWM") - memory("VmRSS") < SLACK


def memory(name: str) -> int:
    """Return the memory of this process in bytes: VmRSS is the current one, VmHWM the maximum since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
