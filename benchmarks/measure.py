"""Measure seconds, memory and arithmetic operations on a CPU or a CUDA device."""

from __future__ import annotations

import ctypes
import gc
import json
import re
from argparse import ArgumentTypeError, Namespace
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
    """Wait for a CUDA device; do nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Measure a call: CPU time on one CPU thread, which other processes do not affect, else wall-clock time."""
    clock = process_time if device.type == "cpu" and torch.get_num_threads() == 1 else perf_counter
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def interleaved(runs: Mapping[str, Callable[[int], float]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time all runs once per round, in the order A B A B, so that a busy machine slows all of them alike.

    Args:
        runs: Name -> function from the number of the round to the seconds that it took.
        repeats: Number of rounds that are returned.
        warmup: Number of first rounds that are dropped.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(warmup + repeats):
        for name, run in runs.items():
            times[name].append(run(i))
    return {name: each[warmup:] for name, each in times.items()}


def ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the median of the ratios within rounds."""
    return median(a / b for a, b in zip(left, right, strict=True))


def gigaflops(run: Callable[[], object]) -> float:
    """Count the floating point operations of matrix products, convolutions and attention in a call, in GFLOP."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the GFLOP/s of a large square matrix product, best of ten: an upper bound for any step."""
    n = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2e-9 * n**3 / min(seconds(lambda: left @ right, device) for _ in range(10))


class Peak:
    """Peak memory between `start` and `mib`, in addition to the memory in use at `start`.

    On CUDA this is memory allocated by torch. On a CPU it is the resident set of this process: VmHWM after a reset,
    with free memory returned to the system first. `mib` returns None if the system does not report it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.before = 0

    def start(self) -> None:
        """Free unused memory and start to measure."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif STATUS.is_file():
            ctypes.CDLL(None).malloc_trim(0)
            CLEAR.write_text("5")
            self.before = resident("VmRSS")

    def mib(self) -> float | None:
        """Return the peak in MiB, or None if the system does not report it."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.before) / MIB
        return (resident("VmHWM") - self.before) / MIB if STATUS.is_file() else None


def resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a new process, whose memory no earlier call has used."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a markdown table with text in the first column and numbers in the others."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


def new_file(text: str) -> Path:
    """Return the path of a file to write; refuse one that exists, before the benchmark starts."""
    if Path(text).exists():
        raise ArgumentTypeError(f"{text} exists and is left as it is; use another path")
    return Path(text)


def publish(text: str, facts: Mapping[str, Any], options: Namespace) -> None:
    """Print the text and, if the options are given, write it to `--out` and all numbers to `--json`."""
    print(text)
    if options.out:
        options.out.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1))
