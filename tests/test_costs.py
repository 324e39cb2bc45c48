"""Costs of a block: time, rows through the UNet, and peak memory."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU

from lorabench.engine.costs import cost, measured, reset_peak, shared_cost
from lorabench.merging import masks
from lorabench.merging.method import load
from lorabench.models.files import model_folder
from lorabench.sampling.sampler import decoded, sample_latents
from lorabench.tasks.jobs import MergePair

FLOATS = 40_000_000  # 320 MB
STATUS = Path("/proc/self/status")


def tells_peaks() -> bool:
    """Return whether the system can reset the peak of this process's memory."""
    np.ones(FLOATS)
    return reset_peak()


def test_passes_are_rows_and_guidance_doubles_them(model, tmp_path: Path) -> None:
    with cost(tmp_path, model.unet):
        decoded(model, sample_latents(model, ["a mug"] * 3, [1, 2, 3], steps=4, guidance=3.0))
    assert json.loads((tmp_path / "cost.json").read_text())["denoiser_passes"] == 3 * 4 * 2
    with cost(tmp_path, model.unet):
        decoded(model, sample_latents(model, ["a mug"], [1], steps=4, guidance=1.0))
    assert json.loads((tmp_path / "cost.json").read_text())["denoiser_passes"] == 4
    assert not model.unet._forward_pre_hooks


def test_block_that_fails_leaves_no_hook_and_no_file(model, tmp_path: Path) -> None:
    with pytest.raises(ValueError), cost(tmp_path, model.unet):
        raise ValueError
    assert not model.unet._forward_pre_hooks and not list(tmp_path.iterdir())


def test_peak_is_of_block_alone() -> None:
    if not tells_peaks():
        pytest.skip("this system has no peak memory of a block")
    before: dict[str, float] = {}
    with measured(before):
        np.ones(FLOATS)
    after: dict[str, float] = {}
    with measured(after):
        torch.ones(10)
    assert before["peak_bytes"] - after["peak_bytes"] > 250e6


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux has the peak memory of a process")
def test_peak_of_something_else_is_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kernels accept the request and do not reset it."""
    np.ones(FLOATS)
    monkeypatch.setattr(Path, "write_text", lambda *_: 1)
    costs: dict[str, float] = {}
    with measured(costs):
        pass
    assert set(costs) - {"computed_on"} == {"seconds"} | ({"peak_gpu_bytes"} if torch.cuda.is_available() else set())


@pytest.mark.parametrize("method", ["direct", "ziprank_closed", "ties"])
def test_merge_seconds_are_without_diagnostics(tmp_path: Path, folder: Path, loras, pair, monkeypatch, method) -> None:
    """Effective ranks take longer than a cheap merge."""
    late, clock, diagnose = [0.0], time.perf_counter, masks.effective_ranks

    def slowly(*args):
        late[0] += 1e6  # seconds
        return diagnose(*args)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])
    monkeypatch.setattr(masks, "effective_ranks", slowly)
    files = tuple(tmp_path / f"{number}.safetensors" for number in range(2))
    for lora, file in zip(loras, files, strict=True):
        lora.save(file)
    MergePair(model_folder(folder), CPU, load(method).merge, files, pair, 0)(tmp_path, lambda steps: None)
    costs, ranks = (json.loads((tmp_path / name).read_text()) for name in ("cost.json", "merge.json"))
    assert costs["seconds"] < 1e6 and bool(late[0]) == bool(ranks["ranks"]) == (method != "ties")


def test_shared_cost_divides_only_what_adds_up(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with shared_cost(folders):
        time.sleep(0.05)
    one, two = (json.loads((folder / "cost.json").read_text()) for folder in folders)
    assert one == two and 0.02 < one["seconds"] < 0.05 and isinstance(one["computed_on"], str)
