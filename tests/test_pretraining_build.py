"""`python -m pretraining`: the commands, the export of checkpoints, and the build of a model in one command."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_pretraining import make_narrow, make_work, stopped_at, weights  # noqa: F401 (fixtures work, narrow)

from lorabench.base import CONF, UserError
from lorabench.models.files import model_folder
from lorabench.models.load import load
from pretraining import __main__ as command
from pretraining import bank, heldout
from pretraining import export as export_module
from pretraining.build import run_alone
from pretraining.card import fill
from pretraining.course import exported_samples
from pretraining.encoded import EncodedBank
from pretraining.export import averaged, export
from pretraining.models import MICRO_SD3, MICRO_SDXL, MODELS
from pretraining.training import Pretraining, pretrain
from pretraining.transformer import FlowLoss
from pretraining.vae import distil


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--resume"], "denoiser needs one of --minutes"),
        (["--minutes", "1", "--samples", "5"], "one of --minutes"),
        (["--anneal", "100"], "needs .*last.ckpt; use"),
        (["--minutes", "1"], "--name=unet has a checkpoint; use --resume"),
        (["--minutes", "1", "--name", "new", "--batch", "9", "--devices", "2"], "--batch=9 must be a multiple"),
    ],
)
def test_denoiser_command_refuses_in_one_line(work, typed, words, monkeypatch):
    if "--anneal" not in typed:
        (work / "unet").mkdir()
        (work / "unet" / "last.ckpt").touch()
    monkeypatch.setattr(heldout, "COUNT", 1)
    monkeypatch.setattr(heldout.heldout_data, "__defaults__", (1, bank.HELDOUT_FROM))
    args = command.arguments().parse_args(["--work", str(work), "denoiser", *typed])
    with pytest.raises(UserError, match=words) as error:
        command.denoiser(args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_checkpoint_is_exported_as_loadable_pipeline(work, kind):
    """After two steps of each training, lorabench and diffusers read the exported pipeline."""
    checkpoint = work / kind.part / "last.ckpt"
    pretrain(EncodedBank(work / "bank"), work / kind.part, samples=4, batch=2, lr=1e-3, kind=kind)
    distil(work, steps=2, decay=1, batch=2, lr=1e-3)
    size = export(checkpoint, work / "vae" / "model", work / "pipeline", kind)
    assert 15e6 < size < 40e6
    assert not [p for p in (work / "pipeline").rglob("*.json") if str(work) in p.read_text()], "paths of this machine"
    loaded = load(model_folder(work / "pipeline"))
    trained = getattr(averaged(checkpoint, kind), kind.part).state_dict()
    for name, weight in loaded.denoiser.state_dict().items():
        assert torch.equal(weight, trained[name].half().float()), name
    assert exported_samples(work / "pipeline") == 4
    assert (work / "README.md").exists() == (kind is MICRO_SD3)
    assert (loaded.process.predicts, loaded.resolution) == ("v_prediction", 64)
    again = Pretraining(EncodedBank(work / "bank"), weights=work / "pipeline", kind=kind)
    assert again.samples == 4
    other = MICRO_SDXL if kind is MICRO_SD3 else MICRO_SD3
    with pytest.raises(UserError, match="another --model"):
        averaged(checkpoint, other)
    with pytest.raises(UserError, match=r"nothing/last.ckpt does not exist; use --name"):
        averaged(work / "nothing" / "last.ckpt", kind)


@pytest.fixture
def build(tmp_path, monkeypatch, narrow):
    """Return a function that runs the build of a narrow micro SD3, and the folder of its export."""
    monkeypatch.setattr(bank, "SHARD", 4)
    monkeypatch.setattr(heldout.heldout_data, "__defaults__", (1, bank.HELDOUT_FROM))
    folder = tmp_path / "micro_sd3" / "pipeline"
    monkeypatch.setitem(MODELS, "micro_sd3", replace(MICRO_SD3, folder=folder))
    typed = ["--work", str(tmp_path / "work"), "build", "--model", "micro_sd3", "--shards", "1", "--workers", "1"]

    def run(samples: int = 64, anneal: int = 128, every: int = 32_000) -> None:
        command.run([*typed, "--samples", str(samples), "--anneal", str(anneal), "--every", str(every)])

    return run, folder


def test_build_runs_all_steps_and_resumes(tmp_path, build):
    """The shards are rendered, trained on and exported; the same command again changes nothing."""
    run, folder = build
    run()
    assert [path.name for path in sorted((tmp_path / "work" / "bank").glob("*.json"))] == ["0034.json"]
    weights = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert exported_samples(folder) == 192 and load(model_folder(folder)).resolution == 64
    curves = [tmp_path / "work" / name / "curve.csv" for name in ("transformer", "transformer-anneal")]
    assert [pd.read_csv(path)["samples"].tolist() for path in curves] == [[64], [192]]
    run()
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in folder.parent.iterdir()) == ["README.md", "pipeline", "training.json"]


def cut(*_: Any, **__: Any) -> None:
    raise OSError("power cut")


def test_build_stopped_in_any_step_ends_as_undisturbed_one(tmp_path, build, monkeypatch):
    """It stops in the training, in the decay and in the export, and the same command continues each time."""
    run, folder = build
    for target, name, value in (
        (Pretraining, "training_step", stopped_at(64)),
        (Pretraining, "training_step", stopped_at(192)),
        (export_module, "write_whole", cut),
        (Path, "replace", cut),
        (export_module.card, "write", cut),
    ):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
            patch.setattr(target, name, value)
            run(128, 128, every=64)
    run(128, 128, every=64)
    stopped = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    for name in ("transformer", "transformer-anneal"):
        shutil.rmtree(tmp_path / "work" / name)
    run(128, 128)
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == stopped


def test_build_refuses_decay_of_other_training_before_work(tmp_path, build):
    run, _ = build
    run()
    curve = (tmp_path / "work" / "transformer" / "curve.csv").read_bytes()
    for numbers in ((128, 128), (64, 64)):
        with pytest.raises(UserError, match=r"has a decay over 128 samples that began at 64 samples, .* remove"):
            run(*numbers)
    assert (tmp_path / "work" / "transformer" / "curve.csv").read_bytes() == curve


def test_card_has_samples_losses_and_parts_of_weights(tmp_path, build, monkeypatch):
    run, folder = build
    run()
    card = folder.parent / "README.md"
    text = card.read_text()
    levels = " | ".join(map(str, FlowLoss.levels))
    row = pd.read_csv(tmp_path / "work" / "transformer-anneal" / "curve.csv").iloc[-1]
    assert f"| t | {levels} |" in text
    losses = " | ".join(f"{row[f'heldout_{t}']:.3f}" for t in FlowLoss.levels)
    assert f"| 192 samples | {losses} |" in text
    assert "| transformer | `SD3Transformer2DModel` | " in text and "| vae | `AutoencoderKL` | 0.9 M |" in text
    assert "Not measured on these weights" in text
    fill(card, "readout of pipeline", "| mine |\n")
    run()
    assert "| mine |" in card.read_text(), "the same weights keep their readout"
    for name in ("transformer", "transformer-anneal"):
        shutil.rmtree(tmp_path / "work" / name)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(export_module.card, "write", cut)
        run(128)
    run(128)
    assert "| mine |" not in card.read_text() and "| 256 samples |" in card.read_text()


def test_step_in_its_own_process_ends_build_if_it_fails(capfd):
    run_alone(["bank", "--help"])
    assert "number of shards" in capfd.readouterr().out
    with pytest.raises(SystemExit) as end:
        run_alone(["bank", "--shards", "many"])
    assert end.value.code == 2 and "invalid int value: 'many'" in capfd.readouterr().err


@pytest.mark.slow
def test_build_on_two_devices_is_that_on_one(work, tmp_path):
    """Each device repeats the command of its process, which must not render or export."""
    for path in list((work / "bank").iterdir()):
        path.rename(path.with_name(f"{34 + int(path.stem):04d}{path.suffix}"))
    done = []
    for devices in ("1", "2"):
        cache, images = tmp_path / f"cache{devices}", tmp_path / f"work{devices}"
        shutil.copytree(work / "bank", images / "bank")
        typed = ["build", "--model", "micro_sd3", "--shards", "2", "--samples", "64", "--anneal", "64"]
        subprocess.run(
            [sys.executable, "-m", "pretraining", "--work", str(images), *typed, "--batch", "16", "--devices", devices],
            check=True, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, cwd=CONF.parent,
        )  # fmt: skip
        folder = cache / "lorabench" / "micro_sd3" / "pipeline"
        assert exported_samples(folder) == 128 and (folder.parent / "README.md").is_file()
        done.append(weights(images / "transformer-anneal"))
    torch.manual_seed(0)
    start = Pretraining(EncodedBank(work / "bank"), kind=MICRO_SD3).state_dict()
    names = [name for name in start if name.startswith("model.")]
    one, two = (torch.cat([(each[name] - start[name]).flatten() for name in names]) for each in done)
    assert (two - one).norm() < 0.05 * one.norm()  # the sum of gradients has another order
