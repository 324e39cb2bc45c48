"""Weighted draws of images."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from conftest import reference

from lorabench.data.weights import draw_weighted
from lorabench.personalization.views import views


def test_weights_draw_as_repeated_images_would() -> None:
    repeated = [image for image, weight in enumerate((2, 1, 3)) for _ in range(weight)]
    positions = torch.randint(len(repeated), (1000,), generator=torch.Generator().manual_seed(0))
    drawn = draw_weighted((2, 1, 3), 1000, torch.Generator().manual_seed(0))
    assert drawn.tolist() == [repeated[position] for position in positions]


def test_equal_weights_draw_as_no_weights() -> None:
    plain = torch.randint(8, (100,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw_weighted([1] * 4, 100, torch.Generator().manual_seed(1), passes=2), plain)


def test_each_pass_has_weights() -> None:
    found = Counter(draw_weighted((1, 9), 4000, torch.Generator().manual_seed(0), passes=2).tolist())
    assert sorted(found) == [0, 1, 2, 3] and 6 < found[1] / found[0] < 13 and 6 < found[3] / found[2] < 13


def test_repeated_image_is_loaded_and_encoded_once(model, monkeypatch) -> None:
    loads, encoded = [], []
    image = reference("mug", "a sks mug", "red")
    often = replace(image, weight=1000, load=lambda: loads.append(1) or image.load())
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    found = views(model, [often, reference("mug", "a cup", "blue")], flips=True, crops=0, seed=0)
    assert len(loads) == 1 and sum(encoded) == len(found.latents) == 4
    prompts = found.draw(model, 100, torch.Generator().manual_seed(0)).prompts
    assert prompts.count("a sks mug") > 95
