"""A bank of 60 images and narrow networks, with which pretraining takes seconds, and a training that is interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining import bank
from pretraining.architecture import build_unet
from pretraining.training import Pretraining
from pretraining.transformer import build_transformer


@cache
def pictures() -> np.ndarray:
    """Return the first 60 images of the bank."""
    return np.stack([bank.picture(i)[0] for i in range(60)])


@pytest.fixture(name="work")
def make_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a work folder with two small shards."""
    monkeypatch.setattr(bank, "SHARD", 30)
    (tmp_path / "bank").mkdir()
    for shard in (0, 1):
        np.save(tmp_path / "bank" / f"000{shard}.npy", pictures()[30 * shard : 30 * shard + 30])
        (tmp_path / "bank" / f"000{shard}.json").write_text(json.dumps(["a mug"] * 30))
    return tmp_path


@pytest.fixture(name="narrow")
def make_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings build networks with few channels."""
    small = partial(build_unet, widths=(8, 16, 16), heads=(1, 2, 2), layers=(1, 1, 2), groups=8)
    monkeypatch.setattr("pretraining.unet.build_unet", small)
    monkeypatch.setattr("pretraining.transformer.build_transformer", partial(build_transformer, 32, 2, 2))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the checkpoint in a training's folder."""
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def stopped_at(samples: int) -> Callable:
    """Return a `Pretraining.training_step` that fails after this number of samples."""
    step = Pretraining.training_step

    def training_step(self: Pretraining, *args):
        if self.samples == samples:
            raise OSError("power cut")
        return step(self, *args)

    return training_step
