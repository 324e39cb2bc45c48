"""Pairs that are known from images of the subject in the style only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hydra import compose
from omegaconf import OmegaConf

from lorabench.base import UserError
from lorabench.config.dataset_schemas import MicroworldSpec, StylisedSpec
from lorabench.data import microworld as mw
from lorabench.data.catalogue import load_pairs, world_version
from lorabench.data.microworld_pairs import draw_photo, draw_styled, oracle
from lorabench.data.pairs import Prompts
from lorabench.data.stylised import is_stylised, stylised, three_prompts
from lorabench.data.uses import pair_for
from lorabench.merging.method import load
from lorabench.personalization.schemes.dreambooth import DreamBooth
from lorabench.tasks.composition import check_images, has_images
from lorabench.tasks.prompts import captions

SPEC = StylisedSpec(
    name="microworld_stylised", subjects="all", styles="all", contents=None, images=1, references=3, scenes=2,
    style_words=True, pairs=["mug_1/ink_1", "cat_1/gold_2"], count=2, pairs_seed=0,
)  # fmt: skip
PLAIN = MicroworldSpec("microworld", ["mug_1"], ["ink_1"], None, 2, 2, 1)


def test_both_concepts_have_image_of_pair_under_their_own_caption() -> None:
    mug, cat = load_pairs(SPEC, Prompts())
    assert [each.name for each in (mug, cat)] == ["mug_1+ink_1", "cat_1+gold_2"]
    assert three_prompts(mug) == ("a sks mug in ink style", "a sks mug", "a mug in ink style")
    assert three_prompts(cat) == ("a sks cat in gold style", "a sks cat", "a cat in gold style")
    for pair in (mug, cat):
        prompts, shown = three_prompts(pair), stylised(pair)
        [of_content], [of_style], [of_both] = (each.images for each in (*pair.concepts, shown))
        assert (of_both.prompt, of_content.prompt, of_style.prompt) == prompts and shown.name == pair.name
        images = [np.asarray(each.load()) for each in (of_content, of_style, of_both)]
        expected = np.asarray(draw_styled(pair.content_name, pair.style_name, 0))
        assert all(np.array_equal(each, expected) for each in images)
        assert len({of_content.sha256, of_style.sha256, of_both.sha256}) == 1 and is_stylised(pair)


def test_prompts_name_style_by_rare_token_if_asked() -> None:
    [pair, _] = load_pairs(replace(SPEC, style_words=False), Prompts(style_token="xyz"))
    assert three_prompts(pair) == ("a sks mug in xyz style", "a sks mug", "a mug in xyz style")
    assert pair.text == "a mug in ink style"


def test_references_are_ground_truth_and_not_trained_on() -> None:
    for pair in load_pairs(replace(SPEC, images=2, references=12), Prompts()):
        content, style = pair.concepts
        assert len(content.references) == len(style.references) == 12 and len(content.images) == len(style.images) == 2
        assert all(each.word != content.word for each in style.references)
        trained = {each.sha256 for each in content.images}
        assert not trained & {each.sha256 for each in (*content.references, *style.references)}
        first = np.asarray(content.references[0].load())
        assert np.array_equal(first, np.asarray(draw_photo(content.name, 2)))  # 0 and 1 are the poses trained on
        assert content.factors == mw.subject(content.name) and style.factors == mw.style(style.name)
        assert oracle(pair, 0).size == (64, 64)


def test_uses_have_scenes_of_their_own() -> None:
    mug, _ = load_pairs(SPEC, Prompts())
    content, style = pair_for(mug, "content"), pair_for(mug, "style")
    assert [scene.prompt for scene in mug.drawn] == ["a sks mug in ink style"]
    assert len(content.drawn) == len(style.drawn) == 2
    assert all(scene.prompt.startswith("a sks mug ") and "ink" not in scene.prompt for scene in content.drawn)
    words = [scene.prompt.split()[1] for scene in style.drawn]
    assert [scene.prompt for scene in style.drawn] == [f"a {word} in ink style" for word in words]
    assert "mug" not in words and set(words) <= set(mw.CLASSES) and len(set(words)) == 2
    assert {scene.prompt for scene in (*content.drawn, *style.drawn)} <= set(captions(mug))


def test_ordinary_pairs_are_not_stylised() -> None:
    [pair] = load_pairs(PLAIN, Prompts())
    assert not is_stylised(pair)
    with pytest.raises(UserError, match=r"mug_1\+ink_1 must be one subject in one style .* dataset=microworld_styl"):
        stylised(pair)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["mug_1+cat_1/ink_1"], r"one subject in one style per image, not mug_1\+cat_1\+ink_1"),
        (["mug_1/ink_1", "mug_1/gold_1"], "two images show the subject mug_1; use dataset.pairs=matched"),
        (["mug_1/ink_1", "cat_1/ink_1"], "two images show the style ink_1"),
        (["mug_1/inc_1"], "has no style 'inc_1'"),
    ],
)
def test_pairs_that_one_image_cannot_show_are_refused(pairs: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_pairs(replace(SPEC, pairs=pairs), Prompts())
    assert "\n" not in str(error.value)


def test_trainings_are_refused_on_datasets_without_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    method = load("direct")
    assert has_images(method, SPEC) and has_images(method, PLAIN)
    with pytest.raises(UserError, match="before and after styling, which dataset=microworld_stylised does not have"):
        check_images(load("pair_customization"), SPEC)
    monkeypatch.setattr(DreamBooth, "images", "stylised")
    check_images(method, SPEC)
    with pytest.raises(UserError, match=r"images of the subject in the style, .* use dataset=microworld_stylised"):
        check_images(method, PLAIN)


def test_dataset_composes(hydra) -> None:
    cfg = compose("config", ["dataset=microworld_stylised", "dataset.count=12"])
    spec = OmegaConf.to_object(cfg.dataset)
    assert isinstance(spec, StylisedSpec) and world_version(spec) == mw.VERSION
    pairs = load_pairs(spec, Prompts())
    assert len(pairs) == len({each.content_name for each in pairs}) == len({each.style_name for each in pairs}) == 12
