"""Training of the micro models: order of images, resuming, and decays that do not change the training."""

import pandas as pd
import pytest
import torch
from small_pretraining import make_narrow, make_work, pictures, stopped_at, weights  # noqa: F401 (fixtures work, narrow)

from lorabench.models.files import MICRO
from lorabench.models.sdxl.model import SDXL
from pretraining.course import exported_samples
from pretraining.encoded import CODE, EncodedBank
from pretraining.latents import PatchPCA, encode_bank
from pretraining.models import MODELS
from pretraining.training import Pretraining, pretrain


def test_each_picture_comes_once_per_epoch(work):
    data = EncodedBank(work / "bank")
    assert len(data) == 60
    first, second = data.batch(0, 60)[0], data.batch(60, 60)[0]
    expected = encode_bank(PatchPCA.load(CODE), [pictures()]).float()
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)
    assert torch.equal(data.batch(58, 4)[0], torch.cat([first[-2:], second[:2]]))


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
@pytest.mark.usefixtures("narrow")
def test_resumed_training_equals_undisturbed_one(work, kind, monkeypatch):
    data = EncodedBank(work / "bank")

    def train(name: str) -> dict[str, torch.Tensor]:
        pretrain(data, work / name, samples=8, batch=2, lr=1e-3, every=4, kind=kind)
        return weights(work / name)

    undisturbed = train("undisturbed")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Pretraining, "training_step", stopped_at(6))
        train("stopped")
    resumed = train("stopped")
    assert all(torch.equal(weight, resumed[name]) for name, weight in undisturbed.items())
    assert pd.read_csv(work / "stopped" / "curve.csv")["samples"].tolist() == [4, 8]


def test_time_limit_starts_again_when_training_resumes(work, narrow):
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
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Pretraining, "training_step", stopped_at(8))
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
