"""Optimizers and schedules of LoRA training against diffusers and the packages."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from conftest import CPU
from diffusers.optimization import get_scheduler

from lorabench.base import UserError
from lorabench.config.recipe import check_recipe
from lorabench.personalization.dreambooth import personalize
from lorabench.personalization.optimizers import optimiser, schedule
from lorabench.personalization.training import Environment

SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")


def rates(law: torch.optim.lr_scheduler.LambdaLR, updates: int) -> list[float]:
    found = []
    for _ in range(updates):
        found.append(law.get_last_lr()[0])
        law.optimizer.step()
        law.step()
    return found


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3, 4))


def diffusers_rates(name: str, warmup: int, steps: int, updates: int) -> list[float]:
    sgd = torch.optim.SGD([weight()], lr=1e-2)
    name = "constant_with_warmup" if name == "constant" else name
    law = get_scheduler(name, sgd, num_warmup_steps=warmup, num_training_steps=steps, num_cycles=2)
    return rates(law, updates)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warmup_rates_are_diffusers(name: str, lora_spec) -> None:
    spec = replace(lora_spec, schedule=name, warmup=0, steps=12, cycles=2)
    ours = rates(schedule(torch.optim.SGD([weight()], lr=spec.lr), spec), 12)
    assert ours == pytest.approx(diffusers_rates(name, 0, 12, 12), rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_with_warmup_update_at_rate_zero_is_left_out(name: str, lora_spec) -> None:
    spec = replace(lora_spec, schedule=name, warmup=3, steps=12, cycles=2)
    ours = rates(schedule(torch.optim.SGD([weight()], lr=spec.lr), spec), 12)
    theirs = diffusers_rates(name, 4, 13, 13)
    assert theirs[0] == 0 and ours == pytest.approx(theirs[1:], rel=1e-6)
    assert ours[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01]) and min(ours) > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_longer_than_training(name: str, lora_spec) -> None:
    spec = replace(lora_spec, schedule=name, warmup=10, steps=3)
    ours = rates(schedule(torch.optim.SGD([weight()], lr=spec.lr), spec), 4)
    assert ours == pytest.approx([spec.lr * step / 11 for step in (1, 2, 3, 4)])


def descend(found: torch.optim.Optimizer, parameter: torch.nn.Parameter, updates: int) -> None:
    for _ in range(updates):
        found.zero_grad()
        (parameter - 3).square().sum().backward()
        found.step()


def test_prodigy_is_prodigyopts_with_diffusers_settings(lora_spec, capsys: pytest.CaptureFixture[str]) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    spec = replace(lora_spec, optimizer="prodigy", lr=1.0)
    ours, theirs = weight(), weight()
    descend(optimiser(spec, [{"params": [ours], "lr": spec.lr}]), ours, 20)
    assert capsys.readouterr().out == ""
    plain = prodigyopt.Prodigy(
        [theirs], lr=1.0, betas=spec.betas, weight_decay=spec.weight_decay, decouple=True, use_bias_correction=True,
        safeguard_warmup=True,
    )  # fmt: skip
    descend(plain, theirs, 20)
    assert torch.equal(ours, theirs) and not torch.equal(ours, weight())


def test_prodigy_trains_lora(model, pair, lora_spec) -> None:
    pytest.importorskip("prodigyopt")
    spec = replace(lora_spec, optimizer="prodigy", lr=1.0, steps=6, text_encoders=True, text_lr=1.0)
    lora = personalize(model, pair.contents[0], spec, Environment(0, CPU))
    assert any(factors.up.abs().sum() > 0 for factors in lora.values())


def test_8_bit_adamw_is_close_to_adamw(lora_spec) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start = torch.randn(128, 64)  # from 4096 numbers on its moments are of 8 bits
    results = []
    for name in ("adamw", "adamw8bit"):
        parameter = torch.nn.Parameter(start.clone())
        found = optimiser(replace(lora_spec, optimizer=name), [{"params": [parameter], "lr": 1e-2}])
        descend(found, parameter, 20)
        results.append(parameter.detach())
    assert isinstance(found, bitsandbytes.optim.AdamW8bit)
    moved = (results[0] - start).abs().mean()
    assert 0 < (results[0] - results[1]).abs().mean() < 0.05 * moved


@pytest.mark.parametrize(("name", "package"), [("prodigy", "prodigyopt"), ("adamw8bit", "bitsandbytes")])
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, lora_spec, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}, which is not installed; run pip install lorabench\[{name}\]"):
        check_recipe(replace(lora_spec, optimizer=name))


def test_what_does_not_go_together(lora_spec) -> None:
    for betas in ((0.9, 1.0), (0.9,)):
        with pytest.raises(UserError, match=r"lora.betas=\[0.9.*\] must be two numbers less than 1"):
            check_recipe(replace(lora_spec, betas=betas))
    pytest.importorskip("prodigyopt")
    with pytest.raises(UserError, match=r"single learning rate, .* use lora.text_lr=1.0"):
        check_recipe(replace(lora_spec, optimizer="prodigy", lr=1.0, text_encoders=True))
