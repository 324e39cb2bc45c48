"""Clones of public datasets, pair lists and samples, splits, scenes, and packaged facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import photos
import pytest
from photos import paint

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DreamBoothStyleDropSpec
from lorabench.data import dreambooth, styledrop
from lorabench.data.catalogue import load_pairs
from lorabench.data.concepts import Concept, Reference
from lorabench.data.contexts import with_scenes
from lorabench.data.packaged import packaged
from lorabench.data.pairs import Pair, pair
from lorabench.data.scenes import Prompts
from lorabench.data.selection import select
from lorabench.data.splits import clusters, split
from lorabench.engine.record import sha256


@pytest.fixture
def root(tmp_path: Path) -> Path:
    photos.dreambooth(tmp_path / "dreambooth")
    photos.styledrop(tmp_path / "StyleDrop-PyTorch")
    return tmp_path


def spec(root: Path = Path("data"), **changes: Any) -> DreamBoothStyleDropSpec:
    values = {
        "name": "dreambooth_styledrop", "contents": None, "subjects": "all", "styles": "all", "pairs": "all",
        "count": 5, "pairs_seed": 0, "references": "same", "root": str(root), "style_root": None,
    }  # fmt: skip
    return DreamBoothStyleDropSpec(**values | changes)


def names(pairs: Sequence[Pair]) -> list[str]:
    return [each.name for each in pairs]


# --- layouts


def test_manifest_of_dreambooth_is_parsed_block_by_block(root: Path) -> None:
    manifest = dreambooth.read_manifest(root / "dreambooth" / "dataset" / "prompts_and_classes.txt")
    assert manifest.classes == photos.CLASSES
    assert manifest.contexts == {
        "object": ["a {} in the jungle", "a {} with the Eiffel Tower in the background", "a cube shaped {}"],
        "live": ["a {} in the jungle", "a {} wearing a santa hat"],
    }


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("dog5,dog", "dog5", 7),
        ("'a {0} {1} in the jungle'.format(unique_token, class_token),\n'a {0} {1} with", "'a', 'a {0} {1} with", 16),
        ("a {0} {1} wearing", "a {0} wearing", 24),
        ("prompt_list = [\n", "prompt_list = [ (\n", 16),
    ],
)  # fmt: skip
def test_spoilt_manifest_is_told_with_its_line(root: Path, old: str, new: str, line: int) -> None:
    path = root / "dreambooth" / "dataset" / "prompts_and_classes.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"prompts_and_classes\.txt:{line}: ") as error:
        dreambooth.read_manifest(path)
    assert "\n" not in str(error.value)


def test_dreambooth_manifest_with_packaged_prompts_is_read_as_packaged(tmp_path: Path) -> None:
    contexts = {kind: packaged("contexts")[kind] for kind in ("object", "live")}
    path = tmp_path / "prompts_and_classes.txt"
    path.write_text(photos.manifest(photos.CLASSES, contexts))
    manifest = dreambooth.read_manifest(path)
    assert manifest.contexts == contexts
    live = [name for name, word in manifest.classes.items() if word in packaged("contexts")["live_classes"]]
    assert live == ["cat", "dog", "dog5"]


def test_styledrop_folder_without_its_manifest_has_packaged_styles(tmp_path: Path) -> None:
    for number, name in enumerate(packaged("styledrop")):
        paint(tmp_path / f"{name}.jpg", number)
    without = styledrop.looks(tmp_path)
    assert list(without) == list(packaged("styledrop"))
    looks = {f"{name}.jpg": look for name, look in packaged("styledrop").items()}
    (tmp_path / "data.json").write_text(json.dumps(looks))
    assert styledrop.looks(tmp_path) == without


def test_there_are_25_prompts_of_each_kind_and_20_styles() -> None:
    contexts = packaged("contexts")
    for kind in ("object", "live"):
        assert len(set(contexts[kind])) == 25 and all(context.count("{}") == 1 for context in contexts[kind])
    assert contexts["object"][:10] == contexts["live"][:10] and contexts["object"][-5:] == contexts["live"][-5:]
    assert len(packaged("styledrop")) == 20


def test_root_may_be_clone_or_hold_it_under_its_name(root: Path) -> None:
    everything = names(load_pairs(spec(root), Prompts()))
    assert len(everything) == 6 * 3
    apart = spec(root / "dreambooth", style_root=str(root / "StyleDrop-PyTorch"))
    assert names(load_pairs(apart, Prompts())) == everything
    inside = spec(root / "dreambooth" / "dataset", style_root=str(root / "StyleDrop-PyTorch" / "data"))
    assert names(load_pairs(inside, Prompts())) == everything
    (root / "StyleDrop-PyTorch").rename(root / "styledrop")
    (root / "dreambooth").rename(root / "dreambooth-main")
    assert names(load_pairs(spec(root), Prompts())) == everything
    with pytest.raises(UserError, match=r"dataset\.style_root="):
        load_pairs(spec(root / "dreambooth-main"), Prompts())
    with pytest.raises(UserError, match=r"dataset\.root="):
        load_pairs(spec(root / "styledrop"), Prompts())


def test_styles_as_folder_of_images_and_of_folders(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "looks"
    paint(folder / "image_03_05.png", 1)
    paint(folder / "oil_painting2.jpg", 2)
    paint(folder / "kid crayon style" / "a.jpg", 3)
    paint(folder / "kid crayon style" / "b.jpg", 4)
    (folder / "notes.txt").write_text("no image")
    pairs = load_pairs(spec(root, subjects="dog", style_root=str(folder)), Prompts())
    assert {each.style_name: (each.text, len(each.styles[0].images)) for each in pairs} == {
        "image_03_05": ("a dog in kid crayon drawing style", 1),
        "oil_painting2": ("a dog in oil painting style", 1),
        "kid crayon style": ("a dog in kid crayon style", 2),
    }
    assert {image.prompt for each in pairs for image in each.styles[0].images} == {
        "a bear in szn style", "a picture in szn style",
    }  # fmt: skip


def test_subject_and_style_of_one_name_are_told_apart_by_nobody(root: Path, tmp_path: Path) -> None:
    paint(tmp_path / "looks" / "dog.jpg", 1)
    with pytest.raises(UserError, match="dog is a subject and a style"):
        load_pairs(spec(root, style_root=str(tmp_path / "looks")), Prompts())


# --- which pairs

SUBJECTS = {name: word in ("dog", "cat") for name, word in photos.CLASSES.items()}
MANY = [f"image_{row:02d}_{column:02d}" for row in (1, 2, 3) for column in range(1, 9)]


def test_sets_of_subjects() -> None:
    def chosen(subjects: Any) -> list[str]:
        return [contents[0] for contents, _ in select(spec(subjects=subjects), SUBJECTS, ["image_01_05"])]

    assert chosen("all") == list(SUBJECTS)
    assert chosen("live") == ["cat", "dog", "dog5"]
    assert chosen("object") == ["backpack_dog", "teapot", "bear_plushie", "vase"]
    assert chosen("teapot") == chosen(["teapot"]) == ["teapot"]
    with pytest.raises(UserError, match=r"dataset\.subjects=live is a set without members here"):
        select(spec(subjects="live"), {"teapot": False}, ["image_01_05"])
    assert select(spec(styles="live"), {"teapot": False}, ["ink"]) == [(("teapot",), ("live",))]  # no set of styles


def test_sample_is_seeded_and_does_not_depend_on_order_of_names() -> None:
    def drawn(subjects: dict[str, bool], styles: Sequence[str], **changes: Any) -> set:
        return set(select(spec(pairs="random", **changes), subjects, styles))

    first = drawn(SUBJECTS, MANY, count=18)
    assert len(first) == 18
    assert first == drawn(dict(reversed(SUBJECTS.items())), MANY[::-1], count=18)
    assert first != drawn(SUBJECTS, MANY, count=18, pairs_seed=1)
    assert first < drawn(SUBJECTS, MANY, count=19)
    assert first == set(select(spec(pairs="klora"), SUBJECTS, MANY))  # 18 is K-LoRA's number
    with pytest.raises(UserError, match=r"200 pairs cannot be sampled from 7 subjects and 24 styles.*count=168"):
        drawn(SUBJECTS, MANY, count=200)


def test_matched_photographs_use_each_name_once() -> None:
    first = select(spec(pairs="matched", count=6), SUBJECTS, MANY)
    for names in zip(*first, strict=True):
        assert len(set(names)) == 6
    assert first == select(spec(pairs="matched", count=6), dict(reversed(SUBJECTS.items())), MANY[::-1])
    assert first == select(spec(pairs="matched", count=7), SUBJECTS, MANY)[:6]
    assert first != select(spec(pairs="matched", count=6, pairs_seed=1), SUBJECTS, MANY)
    with pytest.raises(UserError, match=r"dataset\.count=8 must be at most 7, because matched pairs"):
        select(spec(pairs="matched", count=8), SUBJECTS, MANY)


def test_publication_whose_pairs_are_not_named_is_drawn_in_its_shape() -> None:
    grid = select(spec(pairs="ziplora"), SUBJECTS, MANY)
    subjects, styles = {contents for contents, _ in grid}, {looks for _, looks in grid}
    assert (len(grid), len(subjects), len(styles)) == (32, 4, 8)
    assert set(grid) == set(select(spec(pairs="ziplora"), dict(reversed(SUBJECTS.items())), MANY[::-1]))
    assert len(select(spec(pairs="craft"), SUBJECTS, MANY)) == 10
    with pytest.raises(UserError, match="8 styles cannot be sampled from the 3"):
        select(spec(pairs="ziplora"), SUBJECTS, MANY[:3])
    with pytest.raises(UserError, match="did you mean klora"):
        select(spec(pairs="klor"), SUBJECTS, MANY)


def test_test_set_of_lorarar_is_named() -> None:
    subjects = dict.fromkeys(["dog8", "cat2", "wolf_plushie", "teapot", "can"], False)
    with pytest.raises(UserError, match=r"watercolor_painting3 \(.*jI3Lp0FYEz0\), which is not here"):
        select(spec(pairs="lorarar"), subjects, MANY)
    with pytest.raises(UserError, match=r"dataset\.pairs=lorarar needs the subject dog8, which is not here"):
        select(spec(pairs="lorarar"), {"can": False}, MANY)
    grid = select(spec(pairs="lorarar"), subjects, [*MANY, "watercolor_painting3"])
    assert len(grid) == 25
    assert {looks[0] for _, looks in grid} == {
        "image_03_04", "image_01_07", "watercolor_painting3", "image_02_03", "image_02_06",
    }  # fmt: skip
    own = ["3d_rendering4", "oil_painting2", "watercolor_painting3", "flat_cartoon_illustration", "glowing"]
    assert [looks[0] for _, looks in select(spec(pairs="lorarar"), subjects, own)][:5] == own


# --- which images


def some(count: int, same: Sequence[int] = ()) -> list[tuple[str, Reference]]:
    """Return images; those in `same` have equal bytes."""
    digest = {i: str(same[0] if i in same else i) for i in range(count)}
    return [(f"{i:02d}", Reference("dog", "a sks dog", digest[i], lambda: None)) for i in range(count)]  # type: ignore


@pytest.mark.parametrize("name", ["cat", "dog", "dog5"])
def test_near_duplicates_go_to_one_side(name: str) -> None:
    near = packaged("near_duplicates")[name]
    images = some(5)
    stems = {image: stem for stem, image in images}
    possible = 0
    for count in range(1, 5):
        try:
            trained, references = split(name, images, count, near)
        except UserError as error:
            assert f"dataset.references={count} " in str(error)
            continue
        possible += 1
        sides = [{stems[image] for image in side} for side in (trained, references)]
        assert len(sides[1]) == count and not sides[0] & sides[1] and len(sides[0] | sides[1]) == 5
        assert all(any(set(group) <= side for side in sides) for group in near)
    assert possible >= 3


def test_split_follows_from_names_alone() -> None:
    images = some(6)
    _, held = split("teapot", images, 2)
    assert set(held) == set(split("teapot", images[::-1], 2)[1])
    others = {frozenset(image.sha256 for image in split(f"s{i}", images, 2)[1]) for i in range(40)}
    assert len(others) > 8  # more than 8 of 15 differ: not always the first two
    assert split("teapot", images, 0)[0] == split("teapot", images, 0)[1] == tuple(image for _, image in images)


def test_equal_files_belong_together_and_groups_are_joined() -> None:
    assert clusters(some(5, same=(0, 3)), [["01", "02"], ["02", "03"], ["09"]]) == [["00", "01", "02", "03"], ["04"]]
    with pytest.raises(UserError, match=r"together: 1\+4\), .*use dataset.references=<1\|4>"):
        split("dog", some(5, same=(0, 1, 2, 3)), 2)
    with pytest.raises(UserError, match=r"use dataset.references=<same>"):
        split("dog", some(1), 1)


def test_held_out_images_are_not_trained_on(root: Path) -> None:
    pairs = load_pairs(spec(root, references=2), Prompts())
    for each in pairs:
        [content], [style] = each.contents, each.styles
        assert (len(content.images), len(content.references)) == (3, 2)
        assert not {image.sha256 for image in content.images} & {image.sha256 for image in content.references}
        assert style.images == style.references  # a style is one image
    same = load_pairs(spec(root), Prompts())
    assert all(each.contents[0].images == each.contents[0].references for each in same)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_near_duplicate_photographs_stay_on_one_side_of_split(root: Path, count: int) -> None:
    [each] = load_pairs(spec(root, subjects="dog", styles="image_01_05", references=count), Prompts())
    [near] = packaged("near_duplicates")["dog"]
    duplicates = {sha256(root / "dreambooth" / "dataset" / "dog" / f"{stem}.jpg") for stem in near}
    held = {image.sha256 for image in each.contents[0].references}
    assert len(duplicates) == 2 and len(held) == count
    assert duplicates <= held or not duplicates & held


# --- scenes


def concept(name: str, word: str, live: bool = False, contexts: tuple[str, ...] = ()) -> Concept:
    return Concept(name, "content", word, (), (), live=live, contexts=contexts)


OIL = Concept("oil", "style", "oil painting style", (), ())


def scenes(contents: Sequence[Concept], contexts: Any, lists: Any = None) -> list[tuple[str, str]]:
    prompts = Prompts(contexts=contexts)
    return [
        (scene.prompt, scene.text)
        for scene in with_scenes(pair(tuple(contents), (OIL,), prompts), prompts, lists or {}).scenes
    ]


def test_scenes_name_subject_with_and_without_identifiers() -> None:
    dog, cat = concept("dog", "dog", live=True), concept("cat", "cat", live=True)
    assert scenes([dog], ["in the snow", "a wet {}"]) == [
        ("a sks dog in the snow in szn style", "a dog in the snow in oil painting style"),
        ("a wet sks dog in szn style", "a wet dog in oil painting style"),
    ]
    assert scenes([dog, cat], ["a red {} on a rug"]) == [
        (
            "a red sks dog and a red sks cat on a rug in szn style",
            "a red dog and a red cat on a rug in oil painting style",
        )
    ]
    assert scenes([dog], "none") == []


def test_auto_gives_living_subjects_hats_and_prefers_their_own_scenes() -> None:
    dog, mug = concept("dog", "dog", live=True), concept("mug", "mug")
    for kind, contents in (("live", [dog]), ("object", [mug]), ("object", [mug, dog])):
        assert scenes(contents, "auto") == scenes(contents, packaged("contexts")[kind])
        assert len(scenes(contents, "auto")) == 25
    assert scenes([mug], "live", {"live": ["a {} in a hat"]}) == scenes([mug], ["in a hat"])
    own = concept("rex", "dog", live=True, contexts=("at home",))
    assert scenes([own], "auto") == scenes([dog], ["at home"])
    assert len(scenes([own], "live")) == 25


@pytest.mark.parametrize("contexts", ["hats", ["a {} and {}"], ["a {0} {1}"], [" "]])
def test_contexts_that_cannot_be_are_refused(contexts: Any) -> None:
    with pytest.raises(UserError, match="context") as error:
        scenes([concept("dog", "dog")], contexts)
    assert "\n" not in str(error.value)


def test_clone_s_own_prompts_are_drawn(root: Path) -> None:
    pairs = load_pairs(spec(root), Prompts(contexts="auto"))
    assert {each.name: len(each.drawn) for each in pairs if each.style_name == "image_02_06"} == {
        "backpack_dog+image_02_06": 3, "cat+image_02_06": 2, "dog+image_02_06": 2, "dog5+image_02_06": 2,
        "teapot+image_02_06": 3, "bear_plushie+image_02_06": 3,
    }  # fmt: skip
    assert ("a sks dog wearing a santa hat in szn style", "a dog wearing a santa hat in glowing style") in {
        scene[:2] for each in pairs for scene in each.drawn
    }
