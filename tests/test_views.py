"""Crops, flips and SDXL's conditioning on them, against coordinates computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image

from lorabench.data.concepts import Reference
from lorabench.models.autoencoder import pixels
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.dreambooth import personalize
from lorabench.personalization.training import Environment
from lorabench.personalization.views import cut_at, views


def gradient(width: int, height: int) -> Image.Image:
    """Return an image in which red counts columns and green counts rows."""
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([column, row, 0 * row], axis=-1).astype(np.uint8))


def corner(image: Image.Image) -> tuple[int, int]:
    """Return top and left of a crop of `gradient`."""
    left, top, _ = image.getpixel((0, 0))  # pyright: ignore[reportGeneralTypeIssues]
    return top, left


def reference(image: Image.Image, prompt: str = "a sks mug") -> Reference:
    return Reference("mug", prompt, str(image.size), lambda: image)


def test_centre_of_wide_image_that_needs_no_resize() -> None:
    cut = cut_at(gradient(100, 64), 64, mirrored=False, seed=None)
    assert cut.image.size == (64, 64)
    assert corner(cut.image) == (0, 18)  # (100 - 64) / 2
    assert cut.crop == (64, 100, 0, 18, 64, 64)  # height before width


def test_tall_image_is_resized_by_its_shorter_side() -> None:
    image = Image.new("RGB", (128, 201), "red")
    cut = cut_at(image, 64, mirrored=False, seed=None)
    assert cut.crop == (201, 128, 18, 0, 64, 64)  # 201 * 64 / 128 = 100 rows, of which 36 are left over
    small = cut_at(Image.new("RGB", (32, 32), "red"), 64, mirrored=False, seed=None)
    assert small.image.size == (64, 64) and small.crop == (32, 32, 0, 0, 64, 64)


def test_mirror_image_is_cut_after_it_is_mirrored() -> None:
    """As in diffusers, the corner refers to the image that the UNet gets."""
    cut = cut_at(gradient(101, 64), 64, mirrored=True, seed=None)
    left = round(37 / 2)
    assert cut.crop == (64, 101, 0, left, 64, 64)
    red = np.asarray(cut.image)[0, :, 0]
    assert red.tolist() == [100 - left - column for column in range(64)]


def test_drawn_crops_are_where_they_say_and_belong_to_their_seed() -> None:
    cuts = [cut_at(gradient(100, 64), 64, mirrored=False, seed=seed) for seed in range(200)]
    lefts = {cut.crop[3] for cut in cuts}
    assert all(corner(cut.image) == cut.crop[2:4] for cut in cuts)
    assert min(lefts) == 0 and max(lefts) == 36 and len(lefts) > 30
    assert cuts[7] == cut_at(gradient(100, 64), 64, mirrored=False, seed=7)


def test_views_are_every_crop_and_its_mirror_image(model: SDXL) -> None:
    wide, square = gradient(100, 64), gradient(64, 64)
    found = views(model, [reference(wide), reference(square, "a mug")], flips=True, crops=3, seed=5)
    assert len(found.latents) == len(found.prompts) == 2 * 2 * 3
    assert found.prompts == ["a sks mug", "a mug"] * 6
    assert all(ids == [64, 64, 0, 0, 64, 64] for ids in found.crops[1::2].tolist())
    assert len({ids[3] for ids in found.crops[::2].tolist()}) == 3  # the mirror image has the crops of the image
    mirrored = np.ascontiguousarray(np.asarray(square)[:, ::-1])
    expected = model.encode_images(pixels([square, Image.fromarray(mirrored)]))
    torch.testing.assert_close(found.latents[[1, 7]], expected)


def test_without_crops_centre_counts_as_whole_image(model: SDXL) -> None:
    wide = gradient(100, 64)
    found = views(model, [reference(wide)], flips=False, crops=0, seed=5)
    assert found.crops.tolist() == [[64, 64, 0, 0, 64, 64]] and len(found.latents) == 1
    batch = found.draw(model, 4, torch.Generator().manual_seed(0))
    assert batch.crops.shape == (4, 6) and batch.latents.shape[0] == len(batch.prompts) == 4


def test_unet_gets_crop_of_each_row(model: SDXL, pair, lora_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the concept have their own size and corner, rows of its class are conditioned as whole images."""
    time_ids: list[torch.Tensor] = []
    unet, forward = model.unet, model.unet.forward

    def listen(*args, added_cond_kwargs, **kwargs):
        time_ids.append(added_cond_kwargs["time_ids"])
        return forward(*args, added_cond_kwargs=added_cond_kwargs, **kwargs)

    monkeypatch.setattr(unet, "forward", listen)
    concept = replace(pair.contents[0], images=(reference(gradient(100, 80)),))
    prior = [reference(Image.new("RGB", (64, 64)), "a mug")]
    personalize(
        model, concept, replace(lora_spec, crops=1, prior_weight=1.0, steps=1), Environment(0, CPU, class_images=prior)
    )
    assert time_ids[0].tolist() == [[80, 100, 0, 8, 64, 64]] * 2 + [[64, 64, 0, 0, 64, 64]] * 2
