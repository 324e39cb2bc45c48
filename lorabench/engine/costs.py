"""What a stage costs: seconds, denoiser passes, peak memory; written beside what it made as cost.json."""

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
COMPUTED_ON = "computed_on"  # the device, on a CPU with its threads
SLACK = 1 << 24  # bytes: by so much the two readings of a process's memory may differ, as counters are kept by core


@contextmanager
def cost(folder: Path, network: nn.Module | None = None) -> Iterator[dict[str, Any]]:
    """Write cost.json of the block into the folder, with what else the block puts into the costs."""
    costs: dict[str, Any] = {}
    with measured(costs, network):
        yield costs
    (folder / COST_FILE).write_text(json.dumps(costs))


@contextmanager
def shared_cost(folders: Sequence[Path], network: nn.Module | None = None) -> Iterator[None]:
    """Write cost.json into several folders that the block fills together; each has an equal share of the time."""
    costs: dict[str, Any] = {}
    with measured(costs, network):
        yield
    shares = {name: value / len(folders) if name in SHARED else value for name, value in costs.items()}
    for folder in folders:
        (folder / COST_FILE).write_text(json.dumps(shares))


@contextmanager
def measured(costs: dict[str, Any], network: nn.Module | None = None) -> Iterator[None]:
    """Note what the block takes.

    seconds: of the clock.
    denoiser_passes: rows that went forward through the network; a batch of four counts four, a guided step of one
        image two.
    computed_on: the device, which changes last digits, as does the number of threads of a CPU.
    peak_gpu_bytes: most memory that tensors held at once, on a GPU.
    peak_bytes: most memory that the process held at once, the interpreter and its libraries included, where the
        system tells (Linux).
    """
    import torch

    passes = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal passes
        passes += len(inputs[0])

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    told = reset_peak()
    hook = network.register_forward_pre_hook(count) if network is not None else None
    start = time.perf_counter()
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
    costs["seconds"] = time.perf_counter() - start
    threads = torch.get_num_threads()
    costs[COMPUTED_ON] = torch.cuda.get_device_name() if on_gpu else f"cpu, threads={threads}"
    if network is not None:
        costs["denoiser_passes"] = passes
    if on_gpu:
        costs["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    if told:
        costs["peak_bytes"] = memory("VmHWM")


def joined_costs(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of work that was done in parts, wherever: what adds up is summed, of peaks the highest."""
    names = [name for name in costs[0] if all(name in cost for cost in costs)]
    numbers = [name for name in names if name != COMPUTED_ON]
    found: dict[str, Any] = {
        name: (max if name.startswith("peak") else sum)(cost[name] for cost in costs) for name in numbers
    }
    if COMPUTED_ON in names:
        found[COMPUTED_ON] = "; ".join(sorted({cost[COMPUTED_ON] for cost in costs}))
    return found


def reset_peak() -> bool:
    """Let the system's peak of this process's memory begin anew; False where it cannot, or only says that it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return memory("VmHWM") - memory("VmRSS") < SLACK


def memory(name: str) -> int:
    """Bytes that this process holds: VmRSS now, VmHWM at most since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
