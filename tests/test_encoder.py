"""The expert encoder: markers without training, and what its two trainings learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU
from merges import merged

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import GenerateSpec
from lorabench.data.concepts import ROLES
from lorabench.data.scenes import Scene
from lorabench.merging.method import load
from lorabench.personalization import routing
from lorabench.personalization.routing import routing_job
from lorabench.personalization.training import Environment
from lorabench.sampling.encoder import ExpertEncoder, encoder_scales
from lorabench.sampling.generate import generate_by_rule
from lorabench.sampling.routing import marker_scales

SCENES = [
    Scene.of(each)
    for each in ("a <c>sks mug</c> in <s>szn style</s>", "a <c>cat</c>", "a boat in <s>neon style</s>", "a boat")
]


def test_untrained_encoder_is_routing_by_markers_exactly(model, tmp_path: Path) -> None:
    encoder: Any = ExpertEncoder(model.text_features([""]).shape[1])
    roles = ("content", "content", "style")
    expected = marker_scales(SCENES, roles)
    assert torch.equal(encoder_scales(encoder, model, SCENES, roles), expected)
    encoder.save(tmp_path)
    assert torch.equal(encoder_scales(ExpertEncoder.load(tmp_path), model, SCENES, roles), expected)


def test_scales_are_between_zero_and_one_and_zero_without_mark(model) -> None:
    words = [Scene.of(each) for each in ("a <c>sks mug</c>", "a <c>cat</c>")]
    differ = []
    for seed in range(5):
        torch.manual_seed(seed)
        encoder: Any = ExpertEncoder(model.text_features([""]).shape[1])
        torch.nn.init.normal_(encoder.head[-1].weight, std=3)
        found = encoder_scales(encoder, model, SCENES, ROLES)
        assert (found >= 0).all() and (found <= 1).all() and (found[marker_scales(SCENES, ROLES) == 0] == 0).all()
        one, other = encoder_scales(encoder, model, words, ROLES)[:, 0]
        differ.append(bool(one != other))
    assert any(differ)  # the words matter, unless both scales are 0 or both are 1


def trained(model, pair, lora_spec, mode: str, folder: Path, needed=()) -> ExpertEncoder:
    job = routing_job(mode, pair, load("direct").training.outputs(pair, lora_spec))
    assert job.run(model, Environment(0, CPU, folder=folder, needed=needed)) == {}
    return ExpertEncoder.load(folder)


def bag_of_words(texts: Sequence[str]) -> torch.Tensor:
    """Return the mean of a fixed random vector per word, so that texts with common words are close."""

    def vector(word: str) -> torch.Tensor:
        return torch.randn(256, generator=torch.Generator().manual_seed(seed_of("word", word)))

    return torch.stack([torch.stack([vector(word) for word in text.split() or [""]]).mean(0) for text in texts])


def test_regression_lowers_scale_of_other_words(model, pair, lora_spec, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(routing.STEPS, "regress", 500)
    monkeypatch.setattr(model, "text_features", bag_of_words)
    encoder = trained(model, pair, lora_spec, "regress", tmp_path)
    known, new = Scene.of("<c>the sks mug</c>"), Scene.of("a <c>rocket</c>")
    found = encoder_scales(encoder, model, [known, new, SCENES[3]], ROLES)
    assert found[0, 0] > 0.6 > 0.4 > found[1, 0] and (found[2] == 0).all()


def test_regression_is_repeatable(model, pair, lora_spec, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(routing.STEPS, "regress", 20)
    first, again = (trained(model, pair, lora_spec, "regress", tmp_path) for _ in range(2))
    untrained = ExpertEncoder(model.text_features([""]).shape[1])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    biases = [[*encoder.head.parameters()][-1] for encoder in (first, untrained)]
    assert not torch.equal(*biases)


def test_gradient_of_denoising_is_that_of_its_loss(model, pair, loras, lora_spec, tmp_path: Path) -> None:
    """The gradient through the two scales against differences of the loss at the same noise."""
    folders = [tmp_path / role for role in ROLES]
    for folder, lora in zip(folders, loras, strict=True):
        folder.mkdir()
        lora.save(folder / "lora.safetensors", format="store")
    job = routing_job("denoise", pair, load("direct").training.outputs(pair, lora_spec))
    encoder: Any = ExpertEncoder(model.text_features([""]).shape[1])
    env = Environment(0, CPU, needed=folders)

    def loss(shift: float, role: int) -> torch.Tensor:
        with torch.no_grad():
            encoder.head[-1].bias.zero_()
            encoder.head[-1].bias[role] = -0.5 + shift
        return next(job.denoise(encoder, model, env))

    for role in range(2):
        encoder.zero_grad()
        loss(0.0, role).backward()
        difference = float((loss(0.02, role) - loss(-0.02, role)).detach()) / 0.04
        assert float(encoder.head[-1].bias.grad[role]) == pytest.approx(difference, rel=0.05, abs=1e-4)
        assert abs(difference) > 1e-4


def test_images_follow_scales_of_encoder(model, pair, loras) -> None:
    method = load("direct", routing="regress")
    encoder: Any = ExpertEncoder(model.text_features([""]).shape[1])
    result = merged(model, method, loras, pair)
    spec = GenerateSpec(images=1, steps=2, guidance=3.0, batch=1)

    def drawn(method) -> np.ndarray:
        def parts():
            return method.merge.parts(loras, ROLES, result.masks)

        return generate_by_rule(
            model, method.sampling, result.file, parts, SCENES[:1], [1], spec, CPU, encoder=encoder
        ).astype(int)  # fmt: skip

    assert np.array_equal(drawn(method), drawn(load("direct", routing="marker")))
    torch.nn.init.constant_(encoder.head[-1].bias, -3.0)
    assert np.abs(drawn(method) - drawn(load("direct", routing="marker"))).max() > 1


def test_jobs_have_keys_of_their_words_and_refuse_groups(pair, lora_spec) -> None:
    outputs = load("direct").training.outputs(pair, lora_spec)
    regress, denoise = (routing_job(mode, pair, outputs) for mode in ("regress", "denoise"))
    assert regress.needs == () and [job.concept.name for job in denoise.needs] == ["mug_1", "halftone_1"]
    assert regress.params["words"] == ["sks mug", "szn style"] and regress.params != denoise.params
    with pytest.raises(
        UserError, match=r"method.routing=regress needs one subject and one style whose words are marked"
    ):
        routing_job("regress", replace(pair, alone=Scene("a", "b")), outputs)
