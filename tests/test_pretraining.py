"""Pretraining of the micro models: parts, losses, resuming, and decays that do not change the training."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from lorabench.base import CONF, UserError
from lorabench.data import microworld as mw
from lorabench.models.files import MICRO, model_folder
from lorabench.models.load import load
from lorabench.models.sdxl.model import SDXL
from pretraining import __main__ as command
from pretraining import bank, heldout
from pretraining import export as export_module
from pretraining.architecture import build_scheduler, build_unet
from pretraining.build import run_alone
from pretraining.card import fill
from pretraining.course import exported_samples
from pretraining.encoded import CODE, EncodedBank
from pretraining.export import averaged, export
from pretraining.heldout import heldout_losses
from pretraining.latents import PatchPCA, encode_bank, to_tensor
from pretraining.models import MICRO_SD3, MICRO_SDXL, MODELS, MicroModel
from pretraining.tokens import IDENTIFIERS, build_tokenizer, tokenize
from pretraining.training import Pretraining, pretrain
from pretraining.transformer import FlowLoss, build_flow_scheduler, build_transformer
from pretraining.unet import VLoss
from pretraining.vae import distil


@pytest.fixture(scope="module")
def pictures():
    return np.stack([bank.picture(i)[0] for i in range(60)])


@pytest.fixture
def work(tmp_path, pictures, monkeypatch):
    """Return a work folder with two small shards."""
    monkeypatch.setattr(bank, "SHARD", 30)
    (tmp_path / "bank").mkdir()
    for shard in (0, 1):
        np.save(tmp_path / "bank" / f"000{shard}.npy", pictures[30 * shard : 30 * shard + 30])
        (tmp_path / "bank" / f"000{shard}.json").write_text(json.dumps(["a mug"] * 30))
    return tmp_path


@pytest.fixture
def narrow(monkeypatch):
    small = partial(build_unet, widths=(8, 16, 16), heads=(1, 2, 2), layers=(1, 1, 2), groups=8)
    monkeypatch.setattr("pretraining.unet.build_unet", small)
    monkeypatch.setattr("pretraining.transformer.build_transformer", partial(build_transformer, 32, 2, 2))


@pytest.fixture(params=MODELS)
def kind(request) -> MicroModel:
    return MODELS[request.param]


def test_every_word_of_world_is_one_token():
    tokenizer = build_tokenizer()
    for word in [*mw.vocabulary(), *IDENTIFIERS]:
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("wombat")) > 1
    assert tokenizer.unk_token_id not in tokenizer("an oil painting of a dog, 3-d", add_special_tokens=False).input_ids


def test_patch_code_is_best_linear_one(pictures):
    """The reconstruction error equals the variance of the omitted components; with all 48 it is zero."""
    images = to_tensor(pictures)
    whole = PatchPCA.fit(pictures, channels=48)
    assert torch.allclose(whole.decode(whole.encode(images)), images, atol=1e-4)
    pca = PatchPCA.fit(pictures)
    latents = pca.encode(images)
    assert latents.shape == (60, 12, 16, 16)
    assert latents.var(dim=(0, 2, 3), correction=0).mean() == pytest.approx(1, rel=1e-3)
    patches = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2).reshape(-1, 48)
    spread = torch.linalg.svdvals((patches - patches.mean(0)).double()).square()
    linear = torch.nn.functional.fold(
        torch.einsum("pk,nkl->npl", pca.decoder, latents.flatten(2)) + pca.mean[:, None], (64, 64), 4, stride=4
    )
    assert (linear - images).square().sum().item() == pytest.approx(spread[12:].sum().item(), rel=1e-2)


def test_bank_latents_match_code(pictures):
    pca = PatchPCA.fit(pictures)
    expected = pca.encode(to_tensor(pictures))
    assert torch.allclose(encode_bank(pca, [pictures]).float(), expected, atol=2e-2)


def test_last_step_is_noise_alone():
    """Terminal SNR: SDXL's own schedule would leave the mean color visible (SNR 0.005)."""
    alpha_bar = build_scheduler().alphas_cumprod[-1]
    assert alpha_bar / (1 - alpha_bar) < 1e-4


def test_unet_has_blocks_of_sdxl():
    names = {name.split(".transformer_blocks")[0] for name, _ in build_unet().named_modules() if "attn2" in name}
    expected = {f"down_blocks.{b}.attentions.{i}" for b in (1, 2) for i in (0, 1)}
    expected |= {f"up_blocks.{b}.attentions.{i}" for b in (0, 1) for i in (0, 1, 2)} | {"mid_block.attentions.0"}
    assert names == expected


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def test_each_picture_comes_once_per_epoch(work, pictures):
    data = EncodedBank(work / "bank")
    assert len(data) == 60
    first, second = data.batch(0, 60)[0], data.batch(60, 60)[0]
    expected = encode_bank(PatchPCA.load(CODE), [pictures]).float()
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)
    assert torch.equal(data.batch(58, 4)[0], torch.cat([first[-2:], second[:2]]))


@pytest.mark.usefixtures("narrow")
def test_resumed_training_equals_undisturbed_one(work, kind, monkeypatch):
    data = EncodedBank(work / "bank")

    def train(name: str) -> dict[str, torch.Tensor]:
        pretrain(data, work / name, samples=8, batch=2, lr=1e-3, every=4, kind=kind)
        return weights(work / name)

    undisturbed = train("undisturbed")
    step = Pretraining.training_step

    def dying(self, *args):
        if self.samples == 6:
            raise OSError("power cut")
        return step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Pretraining, "training_step", dying)
        train("stopped")
    resumed = train("stopped")
    assert all(torch.equal(weight, resumed[name]) for name, weight in undisturbed.items())
    assert pd.read_csv(work / "stopped" / "curve.csv")["samples"].tolist() == [4, 8]


def test_time_limit_begins_anew_when_training_resumes(work, narrow):
    """The checkpoint of a training that has used up its time is resumed with the same limit."""
    data, last = EncodedBank(work / "bank"), work / "timed" / "last.ckpt"
    pretrain(data, last.parent, minutes=600, samples=4, batch=2)
    state = torch.load(last, weights_only=True)
    [timer] = [own for own in state["callbacks"].values() if "time_elapsed" in own]
    timer["time_elapsed"]["train"] = 600 * 60.0
    torch.save(state, last)
    assert pretrain(data, last.parent, minutes=600, samples=10, batch=2) == 10


def test_decay_ends_at_zero_and_leaves_constant_training(work, narrow, monkeypatch):
    monkeypatch.setattr("pretraining.training.WARM_UP", 2)
    data, last = EncodedBank(work / "bank"), work / "unet" / "last.ckpt"
    pretrain(data, work / "unet", samples=4, batch=2, lr=1e-3)
    before = last.read_bytes()
    rates, rate = [], Pretraining.rate
    monkeypatch.setattr(Pretraining, "rate", lambda self: rates.append(rate(self)) or rates[-1])
    assert pretrain(data, work / "decay", start=last, anneal=6, batch=2, lr=1e-3) == 10
    assert rates[:3] == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    assert pd.read_csv(work / "decay" / "curve.csv")["rate"].tolist() == [0]
    assert last.read_bytes() == before
    steps = len(rates)
    assert pretrain(data, work / "decay", start=last, anneal=6, batch=2, lr=1e-3) == 10
    assert len(rates) == steps, "a finished decay is not repeated"


def test_interrupted_decay_ends_as_undisturbed_one(work, narrow, monkeypatch):
    data, last = EncodedBank(work / "bank"), work / "unet" / "last.ckpt"
    pretrain(data, work / "unet", samples=4, batch=2, lr=1e-3)
    pretrain(data, work / "whole", start=last, anneal=8, batch=2, lr=1e-3, every=2)
    step = Pretraining.training_step

    def dying(self, *args):
        if self.samples == 8:
            raise OSError("power cut")
        return step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Pretraining, "training_step", dying)
        pretrain(data, work / "stopped", start=last, anneal=8, batch=2, lr=1e-3, every=2)
    pretrain(data, work / "stopped", start=last, anneal=8, batch=2, lr=1e-3, every=2)
    whole, resumed = weights(work / "whole"), weights(work / "stopped")
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_lost_state_is_replaced_by_exported_weights(work):
    """Training continues from the shipped weights and their number of samples, with a new warm-up."""
    module = Pretraining(EncodedBank(work / "bank"), batch=64, lr=6e-4, weights=MICRO)
    assert module.samples == exported_samples(MICRO) and module.samples >= 1_105_000
    assert module.rate() == pytest.approx(6e-4 * 64 / 4000)
    shipped = SDXL.load(MICRO).unet.state_dict()
    assert all(torch.equal(weight, shipped[name]) for name, weight in module.model.unet.state_dict().items())


@pytest.mark.parametrize("loss", [VLoss(), FlowLoss()])
def test_loss_does_not_depend_on_number_of_devices(loss):
    x0, ids = batch_of_four()
    model, place = Predicts(0.3), torch.device("cpu")
    whole = loss(model, x0, ids, 7, slice(0, 4), place)
    halves = [loss(model, x0, ids, 7, rows, place) for rows in (slice(0, 2), slice(2, 4))]
    assert whole.item() == pytest.approx(torch.stack(halves).mean().item())


def batch_of_four():
    x0 = torch.randn(4, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    return x0, tokenize(["a mug", "a cat", "a red duck", "a boat in ink style"]).long()


def test_loss_of_unet_draws_as_for_shipped_weights():
    """The number was computed by the code that trained the shipped weights."""
    loss = VLoss()(Predicts(0.3), *batch_of_four(), 7, slice(0, 4), torch.device("cpu"))
    assert loss.item() == pytest.approx(0.8985719680786133, rel=1e-6)


def test_loss_of_transformer_is_that_of_training_script():
    """diffusers' train_dreambooth_lora_sd3.py: logit_normal places u index the table of the scheduler."""
    x0, ids = batch_of_four()
    model = Predicts(0.3)
    scheduler: Any = build_flow_scheduler()
    loss = FlowLoss()(model, x0, ids, 7, slice(0, 4), torch.device("cpu"))
    rng = torch.Generator().manual_seed(7)
    torch.rand(4, 1, generator=rng)
    u = torch.nn.functional.sigmoid(torch.normal(mean=0.0, std=1.0, size=(4,), generator=rng))
    indices = (u * len(scheduler.timesteps)).long()
    noise = torch.randn(x0.shape, generator=rng)
    sigmas = scheduler.sigmas[indices].view(4, 1, 1, 1)
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    assert torch.allclose(model.t, scheduler.timesteps[indices], atol=1e-3)
    assert torch.allclose(model.noisy, noisy, atol=1e-5)
    expected = ((0.3 * noisy - (noise - x0)) ** 2).reshape(4, -1).mean(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_blocks_of_new_transformer_change_nothing():
    transformer = build_transformer(32, 2, 2)
    block = transformer.transformer_blocks[0]
    image, text, time = torch.randn(2, 64, 32), torch.randn(2, 32, 32), torch.randn(2, 32)
    text_out, image_out = block(hidden_states=image, encoder_hidden_states=text, temb=time)
    assert torch.equal(image_out, image) and torch.equal(text_out, text)


class Predicts(torch.nn.Module):
    """Predicts a multiple of the noisy latents and keeps its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, noisy, t, ids):
        self.noisy, self.t, self.ids = noisy, t, ids
        return self.factor * noisy


def test_heldout_loss_is_error_of_v():
    """With v predicted as zero, the mean of v^2 is abar + (1 - abar) E[x0^2], or 1 + E[x0^2], for independent noise."""
    x0 = 0.5 * torch.randn(128, 12, 16, 16, generator=torch.Generator().manual_seed(1))
    abar = build_scheduler().alphas_cumprod
    for loss in (VLoss(), FlowLoss()):
        losses = heldout_losses(Predicts(0.0), loss, x0, torch.zeros(128, 32))
        assert list(losses) == list(loss.levels)
        for t, found in losses.items():
            expected = float(abar[t] + (1 - abar[t]) * 0.25) if isinstance(loss, VLoss) else 1.25
            assert found == pytest.approx(expected, rel=0.02)


def test_heldout_pictures_are_outside_every_bank():
    assert bank.HELDOUT_FROM > 10_000_000
    latents, ids = heldout.heldout_data(count=2)
    assert latents.shape == (2, 12, 16, 16) and ids.shape == (2, 32)


def test_shipped_code_is_latent_space_of_shipped_vae(pictures):
    vae: Any = AutoencoderKL.from_pretrained(MICRO / "vae")
    with torch.no_grad():
        mean = vae.encode(to_tensor(pictures[:8])).latent_dist.mean
    assert (mean - PatchPCA.load(CODE).encode(to_tensor(pictures[:8]))).square().mean() < 2e-3


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
    with pytest.raises(UserError, match=words):
        command.denoiser(args)


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
    step = Pretraining.training_step

    def dying(samples: int):
        def training_step(self, *args):
            if self.samples == samples:
                raise OSError("power cut")
            return step(self, *args)

        return training_step

    for target, name, value in (
        (Pretraining, "training_step", dying(64)),
        (Pretraining, "training_step", dying(192)),
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


def test_loss_is_error_of_v_with_capped_weight():
    clean = torch.randn(4, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    model = Predicts(0.0)
    loss = VLoss()(model, clean, torch.zeros(4, 32).long(), 3, slice(0, 4), torch.device("cpu"))
    # With v predicted as zero the clean estimate is sqrt(abar) x_t, so |v|^2 = |x_0 - sqrt(abar) x_t|^2 / (1 - abar).
    abar = build_scheduler().alphas_cumprod[model.t].view(-1, 1, 1, 1)
    squared = (clean - abar.sqrt() * model.noisy).square() / (1 - abar)
    snr = abar / (1 - abar)
    assert loss.item() == pytest.approx((torch.clamp(5 / (snr + 1), max=1) * squared).mean().item(), rel=1e-4)
