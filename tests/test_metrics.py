"""Scores against plain numpy, preprocessing by value, and strict loading."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_scorers import MICRO, pictures, write_scorer

from lorabench.base import UserError
from lorabench.scoring import cosine
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.load import load_scorer
from lorabench.scoring.preprocess import Preprocess, to_uint8


def test_cosine_matrix_is_plain_formula():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, 7)), rng.normal(size=(3, 7))
    plain = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    np.testing.assert_allclose(cosine.cosine_matrix(torch.tensor(a), torch.tensor(b)).numpy(), plain, atol=1e-6)


def test_identical_permuted_and_constant_features():
    a = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    assert torch.allclose(cosine.cosine_matrix(a, a).diagonal(), torch.ones(6), atol=1e-6)
    assert torch.allclose(cosine.cosine_matrix(a[order], a), cosine.cosine_matrix(a, a)[order])
    assert torch.equal(cosine.nearest(a[order], a), order)
    constant = torch.ones(4, 3)
    assert torch.allclose(cosine.cosine_matrix(constant, 5 * constant), torch.ones(4, 4))
    assert torch.equal(cosine.cosine_matrix(torch.zeros(1, 3), constant), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="equal width"):
        cosine.cosine_matrix(a, constant)


def test_leave_group_out_ignores_own_group():
    unit = torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.9, 0.3], [0.0, 1.0]])
    labels, groups = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    # 0 -> 2 right; 1 -> 2 wrong; 2 -> 0 or 1, nearest is 1: wrong; 3 -> 1 right
    assert cosine.leave_group_out_r1(unit, labels, groups) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no row has a match"):
        cosine.leave_group_out_r1(unit, torch.arange(4), groups)


def test_preprocessing_values_and_range():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1] = 255
    out = MICRO(images)
    assert out.shape == (2, 3, 8, 8)
    assert float(out[0].min()) == float(out[0].max()) == -2.0
    assert float(out[1].min()) == float(out[1].max()) == 2.0
    noise = pictures(1, 8)
    expected = (noise[0].astype(np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(MICRO(noise)[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("image", [np.ones((8, 8, 3)), np.ones((8, 8, 3), np.float32)])
def test_floats_are_refused_so_nothing_is_divided_by_255_twice(image):
    with pytest.raises(TypeError, match="uint8"):
        MICRO([image])


def test_resize_is_antialiased_and_close_to_pil():
    dino = Preprocess(32, 28, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    checks = (np.indices((128, 192)).sum(0) % 2 * 255).astype(np.uint8)
    board = np.repeat(checks[..., None], 3, axis=2)  # checks of one pixel: antialiasing gives 0.5 everywhere
    assert float((dino([board]) - 0.5).abs().max()) < 0.02
    smooth = np.asarray(Image.fromarray(pictures(1, 8)[0]).resize((192, 128), Image.Resampling.BICUBIC))
    pil = Image.fromarray(smooth).resize((48, 32), Image.Resampling.BICUBIC).crop((10, 2, 38, 30))
    ours = dino([smooth])[0].permute(1, 2, 0).numpy()
    assert ours.shape == (28, 28, 3)
    assert np.abs(ours - np.asarray(pil) / 255).mean() < 0.005


def test_images_of_different_sizes_keep_their_order():
    images = [pictures(1, side, seed=side)[0] for side in (8, 16, 8, 24)]
    together = MICRO(images)
    for i, image in enumerate(images):
        assert torch.equal(together[i], MICRO([image])[0])


def test_transparency_becomes_white_and_exif_is_applied():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert (to_uint8(clear) == 255).all()
    sideways = Image.new("RGB", (6, 4))
    sideways.getexif()[0x0112] = 6
    assert to_uint8(sideways).shape == (6, 4, 3)


@pytest.mark.parametrize("kind", ["dino", "clip", "csd"])
def test_scorers_load_strictly_and_embed_unit_rows(tmp_path, kind):
    folder = write_scorer(tmp_path / kind, kind)
    scorer = load_scorer(ScorerFiles.of(folder))
    images = pictures(5)
    whole, single = scorer.embed(images), scorer.embed(images, batch=1)
    assert set(whole) == set(scorer.roles)
    for role in scorer.roles:
        assert torch.allclose(whole[role].norm(dim=1), torch.ones(5), atol=1e-5)
        assert torch.allclose(whole[role], single[role], atol=1e-5)
    tensors = load_file(folder / "w.safetensors")
    name = sorted(tensors)[0]
    for broken, word in (
        ({k: v for k, v in tensors.items() if k != name}, "missing"),
        ({**tensors, "module.extra": torch.zeros(1)}, "unknown"),
        ({**tensors, name: torch.zeros(3, 1, 4)}, "wrong shape"),
    ):
        save_file(broken, folder / "w.safetensors")
        with pytest.raises(UserError, match=f"1 [a-z ]*{word}") as error:
            load_scorer(ScorerFiles.of(folder))
        assert "\n" not in str(error.value)


def test_file_that_is_no_safetensors_or_no_config_is_one_line(tmp_path):
    folder = write_scorer(tmp_path / "dino", "dino")
    (folder / "w.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_scorer(ScorerFiles.of(folder))
    with pytest.raises(UserError, match="not a scorer"):
        ScorerFiles.of(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for change, word in (({"kind": "lpips"}, "unknown"), ({"preprocess": {"size": 3}}, "preprocess")):
        (folder / "config.json").write_text(json.dumps(config | change))
        (folder / "w.safetensors").unlink(missing_ok=True)
        save_file({"x": torch.zeros(1)}, folder / "w.safetensors")
        with pytest.raises(UserError, match=word):
            load_scorer(ScorerFiles.of(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_config(folder / "config.json")


def test_csd_has_structure_of_released_checkpoint(tmp_path):
    names = load_scorer(ScorerFiles.of(write_scorer(tmp_path / "csd", "csd"))).network.state_dict()
    assert names["last_layer_style"].shape == names["last_layer_content"].shape == (32, 16)
    assert "backbone.proj" not in names
    assert "backbone.conv1.weight" in names


def test_clip_scores_texts_in_space_of_images(tmp_path):
    from lorabench.scoring.clip import Clip

    clip = load_scorer(ScorerFiles.of(write_scorer(tmp_path / "clip", "clip")))
    assert isinstance(clip, Clip)
    texts = clip.embed_text(["a red mug", "a mug in ink style", "a red mug"])
    assert texts.shape == (3, 16)
    assert torch.allclose(texts[0], texts[2])
    assert not torch.allclose(texts[0], texts[1], atol=1e-3)
