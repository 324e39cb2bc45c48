"""Seconds, memory and arithmetic of what runs, on a CPU or a CUDA device."""

from __future__ import annotations

import ctypes
import gc
import json
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time on the clock; on one thread of a CPU, the CPU time of this process, which waits for nobody else."""
    clock = process_time if device.type == "cpu" and torch.get_num_threads() == 1 else perf_counter
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def interleaved(runs: Mapping[str, Callable[[int], float]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Every run once a round, A B A B, so that a busy machine slows all of them; warm-up rounds are dropped.

    runs: by name, of the number of the round to the seconds it took.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(warmup + repeats):
        for name, run in runs.items():
            times[name].append(run(i))
    return {name: each[warmup:] for name, each in times.items()}


def ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """Median of the ratios within the rounds."""
    return median(a / b for a, b in zip(left, right, strict=True))


def gigaflops(run: Callable[[], object]) -> float:
    """Multiplications and additions in the matrix products, convolutions and attentions of a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a large square matrix product: the best of ten, as no step can be faster."""
    n = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2e-9 * n**3 / min(seconds(lambda: left @ right, device) for _ in range(10))


class Peak:
    """The highest memory in use between `start` and `mib`, beyond what was in use at `start`.

    CUDA: what torch has allocated. CPU: the resident set of this process (VmHWM after a reset), free memory having been
    given back to the system first. None where the system does not tell.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.before = 0

    def start(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif STATUS.is_file():
            ctypes.CDLL(None).malloc_trim(0)
            CLEAR.write_text("5")
            self.before = resident("VmRSS")

    def mib(self) -> float | None:
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.before) / MIB
        return (resident("VmHWM") - self.before) / MIB if STATUS.is_file() else None


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns in a fresh process, which no earlier run has left its memory in."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


def publish(text: str, facts: Mapping[str, Any], options: Namespace) -> None:
    """Print the text, and write it to `--out` and all numbers to `--json` where they are given."""
    print(text)
    if options.out:
        Path(options.out).write_text(text)
    if options.json:
        Path(options.json).write_text(json.dumps(facts, indent=1))
