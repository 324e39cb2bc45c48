"""Prompts for the base model, and the shares of images that match them."""

import numpy as np
import pytest
import torch

from lorabench.data import microworld as mw
from lorabench.data.microworld.colors import NAMED
from lorabench.scoring.factors import LABELS
from pretraining import bank
from pretraining.evaluate import SHEET, as_markdown, generate, groups, matches, shares, sheet
from pretraining.prompts import COLORED, Asked, choose, combination, seen_combinations


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return choose([])


def read_right(asked: list[Asked]) -> dict[str, torch.Tensor]:
    wanted = {
        "class": [each.cls for each in asked],
        "family": [each.family or "photo" for each in asked],
        "mark": [each.mark for each in asked],
        "color": [each.color or "red" for each in asked],
        "scene": [each.scene or "snow" for each in asked],
    }
    return {
        name: torch.tensor([[float(w == x) for x in LABELS[name]] for w in words]) for name, words in wanted.items()
    }


def test_prompts_cover_all_kinds_in_words_of_world(asked):
    known = set(mw.vocabulary())
    assert len(asked) == 400 == len({(each.prompt, i) for i, each in enumerate(asked)})
    assert all(set(each.prompt.split()) <= known for each in asked)
    assert {each.cls for each in asked} == set(mw.CLASSES)
    assert {each.family for each in asked} == {"", *mw.SEEN_FAMILIES}
    assert {each.scene for each in asked} == {"", *mw.SCENES}
    assert {each.color for each in asked} == set(NAMED)
    assert all(each.shows_color == (bool(each.scene) or each.family in COLORED) for each in asked)
    assert asked == choose([])


def test_drawings_are_unseen_combinations():
    seen = seen_combinations(400)
    subject, style, _, _ = next(f for f in map(bank.factors_of, range(400)) if f[1])
    assert style is not None and combination(subject, style) in seen
    drawings = [each for each in choose([]) if each.family]
    banned = {each.combination for each in drawings[::2]}
    again = choose(banned)
    assert not banned & {each.combination for each in again if each.family}


def test_renderings_are_what_prompts_ask_for(asked):
    rng = np.random.default_rng(0)
    for each in asked[::9]:
        subject, style, pose = each.thing(rng)
        assert (subject.cls, subject.mark, subject.body.name) == (each.cls, each.mark, each.color)
        if style is None:
            assert (each.family, pose.scene) == ("", each.scene)
        else:
            assert combination(subject, style) == each.combination


def test_shares_count_only_what_is_named(asked):
    read = read_right(asked)
    assert set(shares(matches(read, asked)).values()) == {1.0}
    rows = np.arange(len(asked)) % 4 == 0
    read["mark"][rows] = torch.nn.functional.one_hot(torch.tensor(0), 6).float()  # plain, which is never asked for
    right = matches(read, asked)
    assert shares(right)["mark"] == shares(right)["all"] == pytest.approx(0.75)
    drawn = np.array([not each.scene for each in asked])
    read["scene"][drawn] = 0
    read["color"][[not each.shows_color for each in asked]] = 0
    found = shares(matches(read, asked))
    assert found["scene"] == found["color"] == 1.0, "drawings have no scene, and not all have the subject's colors"


def test_stragglers_are_shown_by_class_family_and_mark(asked):
    read = read_right(asked)
    cats = np.array([each.cls == "cat" for each in asked])
    read["mark"][cats] = 0
    right = matches(read, asked)
    by_class = {word: shares(right.iloc[rows])["mark"] for word, rows in groups(asked, "class").items()}
    assert by_class == {cls: float(cls != "cat") for cls in mw.CLASSES}
    assert {name: sum(map(len, groups(asked, name).values())) for name in ("class", "family", "mark")} == dict.fromkeys(
        ("class", "family", "mark"), len(asked)
    )
    found = {"images": 400, "shares": shares(right), "ceiling": shares(right)}
    found |= {
        f"by {name}": {w: shares(right.iloc[r]) for w, r in groups(asked, name).items()}
        for name in ("class", "family", "mark")
    }
    assert "| cat | 100.0 | 100.0 | 0.0 | 100.0 | 100.0 | 0.0 |" in as_markdown(found)


def test_images_follow_from_prompt_and_number(model):
    one = generate(model, ["a mug", "a cat", "a mug"])
    assert one.shape == (3, 64, 64, 3) and one.dtype == np.uint8
    assert not np.array_equal(one[0], one[2])
    assert np.array_equal(generate(model, ["a mug"])[0], one[0])


def test_sheet_has_row_per_class_and_family(asked):
    images = np.zeros((len(asked), 64, 64, 3), np.uint8)
    assert sheet(images, asked).shape == ((12 + 13) * 64, SHEET * 64, 3)
