"""Folders of users' images: no image is dropped silently, and no run fails after training."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from photos import dreambooth, paint, styledrop
from PIL import Image

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DreamBoothStyleDropSpec, FolderSpec
from lorabench.data import images
from lorabench.data.captions import caption_of
from lorabench.data.catalogue import load_pairs
from lorabench.data.images import image_paths, read_image
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts
from lorabench.data.styledrop import plain

CHOICE = {"contents": None, "pairs": "all", "count": 1, "pairs_seed": 0}


def own_pairs(tmp_path: Path, references: object = "same") -> list[Pair]:
    """Return the pair of photos/ and style/ with a manifest."""
    text = "subjects: {rex: {class: dog, images: photos}}\nstyles: {ink: {style: ink style, images: style}}\n"
    (tmp_path / "manifest.yaml").write_text(text)
    spec = FolderSpec(
        name="folder", manifest=str(tmp_path / "manifest.yaml"), subjects="all", styles="all", references=references,
        **CHOICE,
    )  # fmt: skip
    return load_pairs(spec, Prompts())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(3):
        paint(tmp_path / "photos" / f"{number}.png", number)
    paint(tmp_path / "style" / "0.png", 100)
    return tmp_path / "photos"


def test_same_file_under_two_names_is_one_reference(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "0.png", photos / "copy.png")
    shutil.copy(tmp_path / "style" / "0.png", tmp_path / "style" / "copy.png")
    [pair] = own_pairs(tmp_path)
    for concept, count in zip(pair.concepts, (3, 1), strict=True):
        assert len({image.sha256 for image in concept.references}) == len(concept.references) == count
        assert len(concept.images) == count + 1
    [held_out] = own_pairs(tmp_path, 2)
    content = held_out.contents[0]
    assert not {image.sha256 for image in content.images} & {image.sha256 for image in content.references}


def test_same_file_of_public_layouts_is_one_reference(tmp_path: Path) -> None:
    dreambooth(tmp_path)
    styledrop(tmp_path)
    shutil.copy(tmp_path / "dataset" / "dog" / "00.jpg", tmp_path / "dataset" / "dog" / "copy.jpg")
    [pair] = load_pairs(
        DreamBoothStyleDropSpec(
            name="dreambooth_styledrop", root=str(tmp_path), style_root=None, subjects=["dog"],
            styles=["image_01_05"], references="same", **CHOICE,
        ),
        Prompts(),
    )  # fmt: skip
    assert len(pair.contents[0].references) == 5 and len(pair.contents[0].images) == 6


def test_styles_of_one_stem_keep_names_of_their_own(tmp_path: Path) -> None:
    paint(tmp_path / "bear.jpg", 1)
    paint(tmp_path / "bear.png", 2)
    paint(tmp_path / "bear" / "0.png", 3)
    assert sorted(plain(tmp_path)) == ["bear", "bear-folder", "bear.png"]


def test_captions_beside_images_are_read(photos: Path, tmp_path: Path) -> None:
    (photos / "0.txt").write_text("a sks dog\non a sofa\n")
    line = {"file_name": "1.png", "text": "a sks dog outside"}
    (photos / "metadata.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({"file_name": "2.png"}) + "\n")
    [pair] = own_pairs(tmp_path)
    assert [image.prompt for image in pair.contents[0].images] == [
        "a sks dog on a sofa", "a sks dog outside", "a sks dog"
    ]  # fmt: skip


def test_caption_that_cannot_be_used_is_one_line(photos: Path) -> None:
    (photos / "0.txt").write_text("a sks dog")
    (photos / "0.caption").write_text("a sks cat")
    (photos / "1.txt").write_text(" ")
    (photos / "2.txt").write_bytes(b"caf\xe9")
    for name, text in (("0", "has two captions"), ("1", "must hold a caption"), ("2", "must be text in UTF-8")):
        with pytest.raises(UserError, match=text):
            caption_of(photos / f"{name}.png")
    (photos / "deep").mkdir()
    (photos / "deep" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\nnothing\n')
    with pytest.raises(UserError, match=r"metadata\.jsonl:2: must be"):
        caption_of(photos / "deep" / "a.png")


def test_links_to_nothing_and_folders_are_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    paint(photos / "more" / "9.png", 9)
    assert [path.name for path in image_paths(photos)] == ["0.png", "1.png", "2.png"]
    printed = capsys.readouterr().err
    assert "used 3 of 4 files, left out gone.jpg" in printed and "images of 1 folders in it, more" in printed


def test_name_that_is_not_utf8_is_one_line(photos: Path) -> None:
    shutil.copy(photos / "0.png", os.fsdecode(bytes(photos) + b"/caf\xe9.png"))
    with pytest.raises(UserError, match=r"caf\\udce9\.png must be UTF-8"):
        image_paths(photos)


def test_name_that_is_too_long_for_files_of_run_is_one_line(tmp_path: Path) -> None:
    dreambooth(tmp_path)
    name = "x" * 244
    paint(tmp_path / "styles" / f"{name}.jpg", 7)
    spec = DreamBoothStyleDropSpec(
        name="dreambooth_styledrop", root=str(tmp_path), style_root=str(tmp_path / "styles"), subjects=["dog"],
        styles=[name], references="same", **CHOICE,
    )  # fmt: skip
    with pytest.raises(UserError, match="must be shorter by 5 bytes"):
        load_pairs(spec, Prompts())


def test_large_photograph_is_read_and_larger_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow refuses 1000 pixels
    assert read_image(tmp_path / "a.png").size == (40, 30) and Image.MAX_IMAGE_PIXELS == 500
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    with pytest.raises(UserError, match="must have 0 at most; resize it"):
        read_image(tmp_path / "a.png")


def test_name_is_found_in_either_form_of_unicode(tmp_path: Path) -> None:
    dreambooth(tmp_path, {"cafe\u0301": "cup"})
    paint(tmp_path / "styles" / "e\u0301cru.jpg", 7)
    spec = DreamBoothStyleDropSpec(
        name="dreambooth_styledrop", root=str(tmp_path), style_root=str(tmp_path / "styles"), subjects=["caf\u00e9"],
        styles=["\u00e9cru"], references="same", **CHOICE,
    )  # fmt: skip
    [pair] = load_pairs(spec, Prompts())
    assert pair.name == "caf\u00e9+\u00e9cru"


def test_captions_that_public_layouts_do_not_use_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dreambooth(tmp_path, {"dog": "dog"})
    styledrop(tmp_path)
    captions = [tmp_path / "dataset" / "dog" / "00.txt", tmp_path / "data" / "image_01_05.caption"]
    for path in captions:
        path.write_text("a photo of my dog")
    spec = DreamBoothStyleDropSpec(
        name="dreambooth_styledrop", root=str(tmp_path), style_root=None, subjects=["dog"], styles=["image_01_05"],
        references="same", **CHOICE,
    )  # fmt: skip
    [pair] = load_pairs(spec, Prompts())
    printed = capsys.readouterr().err
    for path in captions:
        assert f"{path.parent}: 1 files of captions are not used ({path.name}); only dataset=folder" in printed
    assert "a sks dog" in {image.prompt for image in pair.contents[0].images}
