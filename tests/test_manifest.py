"""dataset=folder: a user's own images in a manifest; each mistake is reported in one line with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from photos import paint

from lorabench.base import UserError
from lorabench.config.dataset_schemas import FolderSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts

MANIFEST = """\
subjects:
  rex:
    class: dog
    images: rex
    references: [rex9.jpg]
    prompts: [at home, "a wet {}"]
  mug:
    class: coffee mug
    images:
      - mug/a.jpg
      - {file: mug/b.png, caption: the sks coffee mug of ours, repeats: 3}
    repeats: 2
  fox:
    class: fox
    images: [mug/c.jpg]
    live: yes
styles:
  crayon:
    style: kid crayon drawing style
    shows: bear
    images:
      - crayon/a.jpg
      - {file: crayon/b.jpg, shows: house}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, file in enumerate(
        ["rex/1.jpg", "rex/2.png", "rex9.jpg", "mug/a.jpg", "mug/b.png", "mug/c.jpg", "crayon/a.jpg", "crayon/b.jpg"]
    ):
        paint(tmp_path / file, number)
    (tmp_path / "rex" / "notes.txt").write_text("no image")
    (tmp_path / "own.yaml").write_text(MANIFEST)
    return tmp_path


def pairs(folder: Path, contexts: Any = "none", **changes: Any) -> list[Pair]:
    values = {
        "name": "folder", "contents": None, "subjects": "all", "styles": "all", "pairs": "all", "count": 5,
        "pairs_seed": 0, "references": "same", "manifest": str(folder / "own.yaml"),
    }  # fmt: skip
    return load_pairs(FolderSpec(**values | changes), Prompts(contexts=contexts))


def test_subjects_and_styles_of_manifest(folder: Path) -> None:
    rex, mug, fox = pairs(folder)
    assert [each.name for each in (rex, mug, fox)] == ["rex+crayon", "mug+crayon", "fox+crayon"]
    assert (rex.prompt, rex.text) == ("a sks dog in szn style", "a dog in kid crayon drawing style")
    [content], [style] = rex.contents, rex.styles
    assert len(content.images) == 2 and len(content.references) == 1
    assert not set(content.images) & set(content.references)
    assert [image.prompt for image in style.images] == ["a bear in szn style", "a house in szn style"]
    assert style.images == style.references
    assert (rex.contents[0].live, mug.contents[0].live, fox.contents[0].live) == (True, False, True)


def test_style_phrase_may_have_its_preposition(folder: Path) -> None:
    (folder / "own.yaml").write_text(MANIFEST.replace("style: kid", "style: in kid"))
    assert pairs(folder)[0].text == "a dog in kid crayon drawing style"


def test_repeats_are_trained_on_more_often_and_scored_once(folder: Path) -> None:
    [mug] = pairs(folder, subjects=["mug"])[0].contents
    weights = {image.prompt: image.weight for image in mug.images}
    assert len(mug.images) == 2 and weights == {"a sks coffee mug": 2, "the sks coffee mug of ours": 3}
    assert len(mug.references) == len({image.sha256 for image in mug.references}) == 2


def test_subject_s_own_scenes(folder: Path) -> None:
    rex, mug, fox = pairs(folder, contexts="auto")
    assert [scene.text for scene in rex.scenes] == [
        "a dog at home in kid crayon drawing style", "a wet dog in kid crayon drawing style",
    ]  # fmt: skip
    assert len(mug.scenes) == len(fox.scenes) == 25
    assert "wearing" not in mug.scenes[10].text and "wearing" in fox.scenes[10].text


def test_sets_samples_and_held_out_images(folder: Path) -> None:
    assert [each.content_name for each in pairs(folder, subjects="live")] == ["rex", "fox"]
    assert len(pairs(folder, pairs="random", count=2)) == 2
    rex, mug = pairs(folder, subjects=["rex", "mug"], references=1)
    assert len(rex.contents[0].images) == 2  # the manifest names its references
    [content] = mug.contents
    assert len(content.references) == 1 and content.images[0].sha256 != content.references[0].sha256
    assert [image.weight for image in content.images] in ([2], [3])  # the other image as often as in the manifest
    with pytest.raises(UserError, match=r"dataset.references=1 does not go with the images of fox"):
        pairs(folder, subjects=["fox"], references=1)
    with pytest.raises(UserError, match="did you mean rex"):
        pairs(folder, subjects=["rx"])


MISTAKES = [
    ("class: dog", "clas: dog", 3, "rex has no key 'clas'; write class"),
    ("    class: fox\n", "", 14, "fox lacks class"),
    ("images: [mug/c.jpg]", "images: [mug/d.jpg]", 15, r"mug/d\.jpg is missing; put the image there"),
    ("      - mug/a.jpg", "      - mug/x.jpg", 10, r"mug/x\.jpg is missing"),
    ("mug/b.png, caption", "mug/y.png, caption", 11, r"mug/y\.png is missing"),
    ("images: rex\n", "images: rexx\n", 4, "rexx is missing"),
    ("images: rex\n", "images: []\n", 4, "the list is empty"),
    ("images: rex\n", "images: [rex/1.jpg, rex/1.jpg]\n", 4, "is named twice"),
    ("[rex9.jpg]", "[rex/1.jpg]", 5, "is trained on too"),
    ("[rex9.jpg]", "[rex/../rex/1.jpg]", 5, "is trained on too"),
    ("prompts: [at home", "prompts: at home #", 6, "must be a list"),
    ("repeats: 3", "repeats: often", 11, "'often' is not a number of repeats"),
    ("repeats: 2", "repeats: 0", 12, "between 1 and 1000"),
    ("repeats: 2", "repeats: 99999999999", 12, "between 1 and 1000"),
    ("a wet {}", "a {} {}", 6, "is not of the form"),
    ("live: yes", "live: maybe", 16, "'maybe' is neither true nor false"),
    ("class: fox", "class: null", 14, "'null' is not text"),
    ("class: fox", "class: [fox]", 14, "a list or a mapping is not text"),
    ("  mug:\n", "  rex:\n", 7, "'rex' is twice in subjects:"),
    ("  mug:\n", "  mug+cup:\n", 7, "cannot be a name"),
    ("  mug:\n", "  all:\n", 7, "cannot be a name"),
    ("  crayon:\n", "  rex:\n", 18, "'rex' is a subject too"),
    ("shows: bear", "class: bear", 20, "crayon has no key 'class'; write"),
    ("shows: house", "prompt: house", 23, "an image has no key 'prompt'"),
    ("styles:", "style:", 17, "the manifest has no key 'style'; write styles"),
    ("      - crayon/a.jpg", "      - crayon: [a.jpg", 23, "not valid YAML"),
    ("class: dog", "\tclass: dog", 3, "not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), MISTAKES)
def test_mistake_is_told_with_its_line(folder: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in MANIFEST
    (folder / "own.yaml").write_text(MANIFEST.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"own\.yaml:{line}: .*{words}") as error:
        pairs(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "own.yaml:1: the manifest is empty"), ("- a", "own.yaml:1: the manifest must have keys"),
     ("subjects: {}\nstyles: {}", "own.yaml:1: subjects: names nothing"), ("subjects: 3\nstyles: 4", "own.yaml:1: ")],
)  # fmt: skip
def test_file_of_another_form(folder: Path, text: str, words: str) -> None:
    (folder / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        pairs(folder)
    (folder / "own.yaml").write_bytes(b"a:\n\xff\xfe\x00")
    with pytest.raises(UserError, match=r"own\.yaml:2: must be text in UTF-8"):
        pairs(folder)
    (folder / "own.yaml").unlink()
    with pytest.raises(UserError, match=r"use dataset\.manifest="):
        pairs(folder)


def test_broken_image_is_told_with_its_line(folder: Path) -> None:
    (folder / "crayon" / "b.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"own\.yaml:23: .*b\.jpg is not a readable image") as error:
        pairs(folder)
    assert "\n" not in str(error.value)
