"""Neither the environment nor the configuration of a library changes results, and no unfinished training is stored."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from artifacts import artifact
from commands import Commands
from conftest import CPU
from merges import merged
from torch import Tensor, nn

from lorabench.base import CONF
from lorabench.config.schemas import LoRASpec
from lorabench.data.pairs import Pair
from lorabench.engine.costs import cpu
from lorabench.engine.environment import clear_environment
from lorabench.engine.lightning import fit
from lorabench.engine.store import Store
from lorabench.lora.adapter import LoRA
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.dreambooth import personalize
from lorabench.personalization.training import Environment
from lorabench.sampling.generate import generate
from lorabench.tasks.theorem1 import draw

SETTINGS = {
    "FAST_DEV_RUN": "1", "LIMIT_TRAIN_BATCHES": "1", "LIMIT_PREDICT_BATCHES": "1", "OVERFIT_BATCHES": "1",
    "GRADIENT_CLIP_VAL": "1e-6", "MAX_EPOCHS": "0", "MAX_TIME": "00:00:00:00", "DETECT_ANOMALY": "True",
    "INFERENCE_MODE": "False", "BAREBONES": "True", "ACCUMULATE_GRAD_BATCHES": "3",
}  # fmt: skip


def test_training_ignores_environment(model: SDXL, pair: Pair, lora_spec: LoRASpec, monkeypatch) -> None:
    def trained() -> LoRA:
        return personalize(model, pair.contents[0], lora_spec, Environment(0, CPU))

    expected = trained()
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    found = trained()
    assert all(torch.equal(found[name].up, expected[name].up) for name in expected)
    assert any(factors.up.abs().max() > 0 for factors in expected.values())


def test_merge_and_images_ignore_environment(
    model: SDXL, loras: tuple[LoRA, LoRA], pair: Pair, generate_spec, monkeypatch
) -> None:
    method = load("ziplora", fit={"steps": 2, "lr": 0.01, "batch": 1})

    def made() -> tuple[LoRA, np.ndarray]:
        file = merged(model, method, loras, pair).file
        return file, generate(model, [file], [pair.prompt] * 3, [1, 2, 3], generate_spec, CPU)

    expected, images = made()
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    found, again = made()
    assert all(torch.equal(found[name].up, expected[name].up) for name in expected)
    assert len(images) == 3 and np.array_equal(images, again)


class Number(pl.LightningModule):
    """A module with one trainable number."""

    def __init__(self, stops_after: int | None = None) -> None:
        super().__init__()
        self.number, self.stops_after = nn.Parameter(torch.zeros(())), stops_after

    def training_step(self, step: int) -> Tensor:
        if step + 1 == self.stops_after:
            self.trainer.should_stop = True
        return (self.number - 1).square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(module: Number, folder: Path, **options: object) -> None:
    fit(module, 5, torch.device("cpu"), "32-true", **options)  # pyright: ignore[reportArgumentType]
    (folder / "number.txt").write_text(str(module.number.item()))


def test_unfinished_training_is_error_and_no_artifact(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with pytest.raises(RuntimeError, match="made 3 of 5 optimizer steps"):
        store.get_or_make(artifact("personalize", {"a": 1}), partial(train, Number(stops_after=3)))
    assert store.find(artifact("personalize", {"a": 1})) is None
    store.get_or_make(artifact("personalize", {"a": 1}), partial(train, Number()))
    assert store.find(artifact("personalize", {"a": 1})) is not None


def test_training_may_end_by_criterion_of_its_own(tmp_path: Path) -> None:
    module = Number(stops_after=3)
    train(module, tmp_path, is_finished=lambda: True)
    assert module.number.item() == pytest.approx(1 - 0.8**3)


def test_switches_of_libraries_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = ["DIFFUSERS_ATTN_BACKEND", "ONEDNN_DEFAULT_FPMATH_MODE", "PL_TRAINER_MAX_TIME", "TIMM_FUSED_ATTN",
                "TORCH_MKLDNN_MATMUL_MIN_DIM"]  # fmt: skip
    for name in (*switches, "MY_PL_NAME", "TORCH_HOME"):
        monkeypatch.setenv(name, "1")
    assert clear_environment() == switches
    assert clear_environment() == []


def test_command_names_ignored_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_FAST_DEV_RUN", "1")
    command = [sys.executable, str(CONF.parent / "run.py"), "--cfg", "job", "--package", "lora"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.startswith("note: PL_TRAINER_FAST_DEV_RUN of the environment")


FAST = [
    "method=direct", "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", "dataset.content_images=1",
    "dataset.style_images=1", "dataset.references=1", "lora.steps=1", "generate.images=1", "generate.steps=1",
]  # fmt: skip


def test_fresh_run_records_threads_of_all_stages(commands: Commands, tiny: list[str], tmp_path: Path) -> None:
    """Threads of every stage, also if an earlier command with another number computed a part.

    Two threads that share a core with other processes wait long for each other, so they only generate and score.
    """
    for threads in (1, 2):
        arguments = [*tiny, *FAST, f"trainer.threads={threads}", f"output={tmp_path}", f"name=n{threads}"]
        done = commands.run(*arguments, *(["generate.steps=2"] if threads == 2 else []))
        assert done.returncode == 0, done.stderr
    place = cpu().partition(",")[0]
    one, both = (json.loads((tmp_path / f"n{n}/direct-none-s0/manifest.json").read_text()) for n in (1, 2))
    assert one["computed_on"] == [f"{place}, threads=1"]
    assert both["computed_on"] == [f"{place}, threads=1", f"{place}, threads=2"]  # its LoRAs are those of the first


def test_relative_output_is_that_of_command_with_chdir(commands: Commands, tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *FAST, "output=mine", "hydra.job.chdir=true"]
    done = commands.run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"adhoc", "store"}
    again = commands.run(*arguments[:-1], cwd=tmp_path)
    assert again.returncode == 0 and "personalize" not in again.stderr  # found done
    done = commands.run(*arguments, "method=direct,style_only", "-m", cwd=tmp_path)
    assert done.returncode == 0 and [path.parent for path in tmp_path.rglob("store")] == [tmp_path / "mine"]


def test_figures_take_no_configuration_of_user(tmp_path: Path) -> None:
    def plotted(name: str) -> bytes:
        errors = pd.DataFrame({"e_out": [0.1, 0.4], "e_rank_svd": [0.2, 0.3], "e_rank_raw": [0.5, 0.1], "k": [1, 2]})
        draw(errors, tmp_path / name)
        return (tmp_path / name).read_bytes()

    expected = plotted("a.png")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 33}):
        assert plotted("b.png") == expected
        assert matplotlib.rcParams["font.size"] == 30  # the user's own figures keep it


def test_every_figure_is_plotted_in_default_style() -> None:
    """All functions that make a figure, or their callers, are decorated."""
    for path in [*(CONF.parent / "lorabench").rglob("*.py"), CONF.parent / "pretraining" / "curve.py"]:
        text = path.read_text(encoding="utf-8")
        assert text.count(" Figure(") == 0 or "@default_style()" in text, path


def test_text_is_utf8_in_every_locale() -> None:
    """Texts that may hold names of the user are not written in the encoding of the locale."""
    for path in (CONF.parent / "lorabench").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "write_text":
                text = ast.unparse(call)
                is_ascii = any(part in text for part in ("json.dumps", "clear_refs"))
                assert "encoding=" in text or is_ascii, f"{path}: {text}"
