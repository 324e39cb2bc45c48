"""Claims on invented GPUs by real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import CPU
from filelock import FileLock, Timeout
from rank_jobs import fine, item, plan_at

from lorabench.base import UserError
from lorabench.engine import devices
from lorabench.engine import make as executor
from lorabench.engine.devices import claim, claim_here, gpus
from lorabench.engine.make import make

PAIR = {"0": "GPU-a", "1": "GPU-b"}
HOLDER = """
import sys, time
from lorabench.engine.devices import claim
with claim("gpu", int(sys.argv[1]), lambda: {"0": "GPU-a", "1": "GPU-b"}) as held:
    print(*held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORABENCH_DEVICES", str(tmp_path / "locks"))
    monkeypatch.setattr(devices, "EVERY", 0.01)


@pytest.fixture
def holders():
    """Return a function that starts a process that holds this many of two devices until its input ends."""
    with ExitStack() as stack:

        def start(count: int) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", HOLDER, str(count)]
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_get_device_each_and_third_waits(holders) -> None:
    first, second = holders(1), holders(1)
    assert {line(first), line(second)} == {"0", "1"}
    third = holders(1)
    assert third.stderr.readline().startswith("waiting for 1 of 2 GPUs")
    assert third.poll() is None
    first.kill()  # -9: the system gives its device back
    assert line(third) in ("0", "1")
    second.communicate("")
    third.communicate("")
    with claim("gpu", 2, lambda: PAIR) as held:
        assert held == ["0", "1"]


def test_one_that_wants_both_is_not_starved_nor_deadlock(holders) -> None:
    first = holders(1)
    assert line(first)
    both = holders(2)
    assert both.stderr.readline().startswith("waiting for 2 of 2")
    late = holders(1)  # comes after it in the queue
    assert late.stderr.readline().startswith("waiting")
    first.communicate("")
    assert line(both) == "0 1"
    both.communicate("")
    assert line(late) == "0"
    late.communicate("")


def test_claims_within_process_exclude_each_other_and_error_frees_them() -> None:
    with pytest.raises(ValueError), claim("gpu", 1, lambda: PAIR) as held, claim("auto", 1, lambda: PAIR) as other:
        assert (held, other) == (["0"], ["1"])
        raise ValueError
    with claim("gpu", 2, lambda: PAIR) as held:
        assert len(held) == 2


def test_same_gpu_by_another_name_is_same(holders) -> None:
    assert line(holders(1)) == "0"
    with claim("gpu", 1, lambda: {"GPU-a": "GPU-a", "GPU-b": "GPU-b"}) as held:
        assert held == ["GPU-b"]


def test_cpu_and_machine_without_gpus_claim_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    with claim("cpu", 3, lambda: PAIR) as held:
        assert held == []
    with claim("auto", 3, dict) as held:
        assert held == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == {}
    assert time.monotonic() - start < 60
    with pytest.raises(UserError, match=r"use trainer\.devices=2"), claim("gpu", 3, lambda: PAIR):
        pass


def test_process_computes_on_gpu_that_it_holds_and_comes_back_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[int] = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    monkeypatch.setattr(devices, "SETTLED", set())
    with claim("gpu", 1, lambda: PAIR), claim_here("auto", lambda: PAIR) as held:
        assert (held, current) == (["1"], [1])
        with pytest.raises(Timeout):
            FileLock(devices.lock_folder() / "GPU-b.lock").acquire(blocking=False)
    with claim_here("gpu", lambda: PAIR) as held:  # though the first is free by now
        assert (held, current) == (["1"], [1, 1])
    with claim_here("cpu", lambda: PAIR) as held:
        assert held == []


def test_jobs_of_this_process_compute_on_claimed_gpu(tmp_path: Path, lora_spec, monkeypatch) -> None:
    claimed: list[str] = []

    @contextmanager
    def note(accelerator: str) -> Iterator[list[str]]:
        claimed.append(accelerator)
        yield ["1"]

    monkeypatch.setattr(executor, "claim_here", note)
    make(plan_at(tmp_path, CPU, lora_spec).store, CPU, [item(0, fine)])
    assert claimed == ["cpu"]


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 2, {"0": "GPU-a1", "1": "GPU-b2"}),
        ("1", 1, {"1": "GPU-b2"}),
        ("GPU-b, GPU-a1", 2, {"GPU-b": "GPU-b2", "GPU-a1": "GPU-a1"}),
        ("MIG-x/1/0", 1, {"MIG-x/1/0": "MIG-x-1-0"}),
        ("0,-1,1", 1, {"0": "GPU-a1"}),  # CUDA stops at an unknown name
    ],
)
def test_what_is_visible(
    visible: str | None, count: int, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr(devices, "uuids", lambda: {"0": "GPU-a1", "1": "GPU-b2"})
    assert gpus() == expected
