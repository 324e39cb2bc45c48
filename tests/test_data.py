"""Concepts of the microworld and of photographs in their public layouts, and errors for bad files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from PIL import Image

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DreamBoothStyleDropSpec, MicroworldSpec
from lorabench.data import images, microworld_pairs
from lorabench.data.catalogue import load_pairs
from lorabench.data.concepts import square
from lorabench.data.scenes import Prompts

WORLD = MicroworldSpec("microworld", ["mug_1", "cat_1"], ["halftone_1", "ink_1"], None, 3, 2, 2)
PROMPTS = Prompts()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write two subjects and a style in the public layouts."""
    for name, color in (("dog", "brown"), ("cat2", "grey")):
        folder = tmp_path / "dreambooth" / "dataset" / name
        folder.mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (40, 30 + index), color).save(folder / f"{index:02d}.jpg")
    manifest = "Classes\n\nsubject_name,class\ndog,dog\ncat2,cat\nvase,vase\n"
    (tmp_path / "dreambooth" / "dataset" / "prompts_and_classes.txt").write_text(manifest)
    styles = tmp_path / "styledrop" / "data"
    styles.mkdir(parents=True)
    Image.new("RGB", (50, 20), "teal").save(styles / "image_01_05.jpg")
    (styles / "data.json").write_text(json.dumps({"image_01_05.jpg": ["A village", "in oil painting style"]}))
    return tmp_path


def spec(root: Path, subjects: list[str] | str = "", styles: list[str] | str = "") -> DreamBoothStyleDropSpec:
    subjects, styles = subjects or ["dog", "cat2"], styles or ["image_01_05"]
    return DreamBoothStyleDropSpec(
        "dreambooth_styledrop", None, subjects, styles, "all", 18, 0, "same", str(root), None
    )


def test_microworld_pairs_are_all_pairs_with_their_prompts() -> None:
    pairs = load_pairs(WORLD, PROMPTS)
    assert [pair.name for pair in pairs] == [
        "mug_1+halftone_1", "mug_1+ink_1", "cat_1+halftone_1", "cat_1+ink_1",
    ]  # fmt: skip
    pair = pairs[0]
    assert pair.prompt == "a sks mug in szn style"
    assert pair.text == "a mug in halftone style"
    assert {image.prompt for image in pair.contents[0].images} == {"a sks mug"}
    assert all(image.prompt == f"a {image.word} in szn style" for image in pair.styles[0].images)
    assert len(pair.contents[0].images) == 3
    assert len(pair.styles[0].references) == 2
    everything = [image for concept in pair.concepts for image in (*concept.images, *concept.references)]
    assert len({image.sha256 for image in everything}) == len(everything)


def test_concept_does_not_depend_on_rest_of_run() -> None:
    single = load_pairs(MicroworldSpec("microworld", ["cat_1"], ["ink_1"], None, 3, 2, 2), PROMPTS)[0]
    among = load_pairs(WORLD, PROMPTS)[3]
    assert single.contents[0].identity() == among.contents[0].identity()
    assert single.styles[0].identity() == among.styles[0].identity()


def test_microworld_images_are_same_in_another_process() -> None:
    pair = load_pairs(WORLD, PROMPTS)[1]
    for reference in (pair.contents[0].images[0], pair.styles[0].images[1]):
        again = pickle.loads(pickle.dumps(reference))
        assert np.array_equal(np.asarray(reference.image(64)), np.asarray(again.image(64)))
        assert reference.image(64).size == (64, 64)


def test_oracle_draws_subject_in_style_in_other_poses() -> None:
    pair = load_pairs(WORLD, PROMPTS)[0]
    first, second = (np.asarray(microworld_pairs.oracle(pair, index)) for index in (0, 1))
    assert first.shape == (64, 64, 3)
    assert not np.array_equal(first, second)


def test_other_identifiers() -> None:
    pair = load_pairs(WORLD, Prompts(content_token="xyz", style_token="abc"))[0]
    assert pair.prompt == "a xyz mug in abc style"


def test_photographs_in_public_layouts(photos: Path) -> None:
    pairs = load_pairs(spec(photos), PROMPTS)
    assert [pair.name for pair in pairs] == ["dog+image_01_05", "cat2+image_01_05"]
    assert pairs[1].prompt == "a sks cat in szn style"
    assert pairs[1].text == "a cat in oil painting style"
    assert pairs[0].styles[0].images[0].prompt == "a village in szn style"
    assert pairs[0].contents[0].images[0].image(16).size == (16, 16)


def test_keys_follow_bytes_and_not_path(photos: Path, tmp_path: Path) -> None:
    before = load_pairs(spec(photos), PROMPTS)[0].contents[0].identity()
    moved = photos.rename(tmp_path.with_name("elsewhere"))
    assert load_pairs(spec(moved), PROMPTS)[0].contents[0].identity() == before
    Image.new("RGB", (40, 30), "black").save(moved / "dreambooth" / "dataset" / "dog" / "00.jpg")
    assert load_pairs(spec(moved), PROMPTS)[0].contents[0].identity() != before


def test_exif_orientation_and_transparency(tmp_path: Path) -> None:
    tall = Image.new("RGB", (8, 4))
    exif = tall.getexif()
    exif[0x0112] = 6  # rotated by a quarter
    tall.save(tmp_path / "a.jpg", exif=exif)
    assert images.read_image(tmp_path / "a.jpg").size == (4, 8)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "b.png")
    assert images.read_image(tmp_path / "b.png").getpixel((1, 1)) == (255, 255, 255)
    Image.new("L", (4, 4), 7).save(tmp_path / "c.png")
    assert images.read_image(tmp_path / "c.png").getpixel((0, 0)) == (7, 7, 7)


def test_square_crops_centre() -> None:
    image = Image.new("RGB", (30, 10), "black")
    image.paste((255, 0, 0), (10, 0, 20, 10))
    assert square(image, 10).getcolors() == [(100, (255, 0, 0))]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "dreambooth/dataset/prompts_and_classes.txt").unlink(), "dataset.root="),
        (lambda root: [path.unlink() for path in (root / "dreambooth/dataset/dog").iterdir()], "must hold an image"),
        (lambda root: (root / "dreambooth/dataset/dog/00.jpg").write_bytes(b"no image"), "not a readable image"),
        (lambda root: truncate(root / "dreambooth/dataset/cat2/01.jpg"), "not a readable image"),
        (lambda root: (root / "styledrop/data/image_01_05.jpg").unlink(), "is missing"),
        (lambda root: (root / "styledrop/data/data.json").write_text("[1]"), "is not of the form"),
        (lambda root: (root / "styledrop/data/data.json").write_text('{\n"a.jpg": ['), "data.json:2: "),
        (lambda root: rmtree(root / "styledrop"), "dataset.style_root="),
    ],
)
def test_bad_files_are_named_before_anything_runs(photos: Path, spoil, words: str) -> None:
    spoil(photos)
    with pytest.raises(UserError, match=words) as error:
        load_pairs(spec(photos), PROMPTS)
    assert "\n" not in str(error.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_unknown_names_are_told_nearest(photos: Path) -> None:
    with pytest.raises(UserError, match="did you mean dog"):
        load_pairs(spec(photos, subjects=["dgo"]), PROMPTS)
    with pytest.raises(UserError, match="image_01_05"):
        load_pairs(spec(photos, styles=["image_01_04"]), PROMPTS)
    with pytest.raises(UserError, match="vase is unknown"):  # in the manifest, without a folder
        load_pairs(spec(photos, subjects=["vase"]), PROMPTS)
    with pytest.raises(UserError, match="use one of mug_"):
        load_pairs(MicroworldSpec("microworld", ["mug_9"], ["ink_1"], None, 1, 1, 1), PROMPTS)


def test_every_subject_with_folder_meets_every_style(photos: Path) -> None:
    styles = photos / "styledrop" / "data"
    Image.new("RGB", (20, 50), "navy").save(styles / "image_03_03.jpg")
    looks = {"image_01_05.jpg": ["A village", "in oil painting style"], "image_03_03.jpg": ["A car", "in neon style"]}
    (styles / "data.json").write_text(json.dumps(looks))
    pairs = load_pairs(spec(photos, "all", "all"), PROMPTS)
    assert [pair.text for pair in pairs] == [
        "a dog in oil painting style", "a dog in neon style", "a cat in oil painting style", "a cat in neon style",
    ]  # fmt: skip


def test_several_subjects_in_one_picture_are_all_named() -> None:
    styles = ["ink_1", "halftone_1+gold_1"]
    spec = MicroworldSpec("microworld", ["duck_1"], styles, ["mug_1", "cat_1", "car_1"], 3, 2, 2)
    first, second = load_pairs(spec, PROMPTS)
    assert (first.name, second.name) == ("mug_1+cat_1+car_1+ink_1", "mug_1+cat_1+car_1+halftone_1+gold_1")
    assert first.prompt == second.prompt == "a sks mug, a sks cat and a sks car in szn style"
    assert second.text == "a mug, a cat and a car in halftone style and gold style"
    assert first.roles == ("content", "content", "content", "style")
    assert [couple.name for couple in first.couples] == ["mug_1+ink_1", "cat_1+ink_1", "car_1+ink_1"]
    assert first.couples[0].prompt == "a sks mug in szn style" and not first.is_single
    assert len(second.couples) == 6 and first.couples[0].is_single and not first.couples[0].couples


def test_two_subjects_of_one_class_cannot_be_told_apart() -> None:
    with pytest.raises(UserError, match="two subjects called 'mug'"):
        load_pairs(MicroworldSpec("microworld", ["mug_1+mug_2"], ["ink_1"], None, 1, 1, 1), PROMPTS)
