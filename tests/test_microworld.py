"""The world: deterministic rendering, its version, and held-out subjects and styles."""

from typing import Any

import numpy as np
import pytest

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.data.microworld.registry import MARGIN
from pretraining import bank
from pretraining.development import BANK_MARGIN

POSE = mw.Pose()


def subject(cls: str) -> mw.Subject:
    return mw.subject(f"{cls}_1")


def test_pictures_of_version_never_change():
    """If this fails, images have changed: raise VERSION, so that no table mixes two worlds."""
    pictures = [mw.render(mw.subject("mug_1"), None, POSE), mw.render(mw.subject("cat_2"), mw.style("neon_1"), POSE)]
    thumbs = [p.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)).round().astype(int) for p in pictures]
    assert mw.VERSION == "1"
    assert [thumb[3, 3].tolist() for thumb in thumbs] == [[129, 147, 107], [85, 155, 62]]


@pytest.mark.parametrize("family", [None, *mw.FAMILIES])
def test_every_class_is_visible_in_every_family(family):
    """The subject differs from another class in the same style."""
    style = mw.style(f"{family}_1") if family else None
    drawn = [mw.render(subject(cls), style, POSE).astype(float) for cls in mw.CLASSES]
    for i, one in enumerate(drawn):
        assert one.shape == (64, 64, 3)
        assert all(np.abs(one - other).mean() > 2 for other in drawn[:i])


def test_rendering_is_function_of_its_arguments():
    args = (subject("duck"), mw.style("crayon_2"), mw.Pose(rotation=5, flip=True))
    assert np.array_equal(mw.render(*args), mw.render(*args))


def test_larger_pictures_show_same_thing():
    small = mw.render(subject("house"), mw.style("poster_1"), POSE)
    large = mw.render(subject("house"), mw.style("poster_1"), POSE, size=128)
    shrunk = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 6


def test_identity_survives_scene():
    """The subject's pixels do not depend on the scene."""
    rng = np.random.default_rng(0)
    one = mw.sample_subject(rng, "lamp")
    in_snow, at_night = (mw.render(one, None, mw.Pose(scene=s)) for s in ("snow", "night"))
    assert np.abs(in_snow[20:28, 28:36].astype(float) - at_night[20:28, 28:36]).mean() < 1
    assert np.abs(in_snow[:4].astype(float) - at_night[:4]).mean() > 30


def test_sampled_things_keep_margin_to_heldout_names():
    rng = np.random.default_rng(1)
    for _ in range(200):
        drawn, style = mw.sample_subject(rng), mw.sample_style(rng)
        assert style.family not in mw.UNSEEN_FAMILIES
        assert all(mw.content_distance(drawn, mw.subject(n)) > MARGIN for n in mw.HELDOUT_SUBJECTS)
        assert all(mw.style_distance(style, mw.style(n)) > MARGIN for n in mw.HELDOUT_STYLES)


def test_development_names_leave_heldout_names_as_they_were():
    """Factors are as before development names existed, because every shipped score depends on them."""
    assert mw.subject("mug_1").shape[0] == pytest.approx(0.30920154392772237)
    assert mw.style("ink_1").hue == pytest.approx(0.045323506384000734)
    names = [*mw.HELDOUT_SUBJECTS, *mw.HELDOUT_STYLES, *mw.DEVELOPMENT_SUBJECTS, *mw.DEVELOPMENT_STYLES]
    assert len(set(names)) == len(names)
    assert {mw.kind_of(n) for n in mw.DEVELOPMENT_SUBJECTS} == set(mw.CLASSES)
    assert {mw.kind_of(n) for n in mw.DEVELOPMENT_STYLES} == set(mw.FAMILIES)


@pytest.mark.parametrize("kind", ["subject", "style"])
def test_development_names_keep_margin_to_all_other_names(kind: str) -> None:
    names = {
        "subject": (mw.HELDOUT_SUBJECTS + mw.DEVELOPMENT_SUBJECTS, mw.subject, mw.content_distance),
        "style": (mw.HELDOUT_STYLES + mw.DEVELOPMENT_STYLES, mw.style, mw.style_distance),
    }
    all_names, named, distance = names[kind]
    things: list[Any] = [named(name) for name in all_names]
    for i in range(len(things) - 24, len(things)):
        assert min(distance(things[i], other) for other in things[:i]) > MARGIN


@pytest.mark.parametrize("first", [0, bank.DEVELOPMENT_FROM])
def test_bank_keeps_margin_to_development_names(first):
    """This compares with a sample of the bank; `pretraining.development` compares with all of it."""
    earlier = first < bank.DEVELOPMENT_FROM
    subject_margin = BANK_MARGIN["subject"] if earlier else MARGIN
    style_margin = BANK_MARGIN["style"] if earlier else MARGIN
    for i in range(first, first + 400):
        subject, style, _, _ = bank.factors_of(i)
        rivals = [n for n in mw.DEVELOPMENT_SUBJECTS if n.startswith(subject.cls)]
        assert all(mw.content_distance(subject, mw.subject(n)) > subject_margin for n in rivals)
        if style:
            rivals = [n for n in mw.DEVELOPMENT_STYLES if n.startswith(style.family)]
            assert all(mw.style_distance(style, mw.style(n)) > style_margin for n in rivals)


def test_pictures_of_earlier_bank_are_unchanged():
    """Factors of image 135,999 are as in the training."""
    subject, style, _, _ = bank.factors_of(135_999)
    assert (subject.cls, subject.mark, style) == ("house", "banded", None)
    assert subject.shape[0] == pytest.approx(0.6533934723092881)


def test_held_out_things_cover_known_settings_and_unknown_families():
    families = {mw.kind_of(name) for name in mw.HELDOUT_STYLES}
    assert families == set(mw.FAMILIES)
    assert len(mw.CLASSES) >= 12 and len(mw.SEEN_FAMILIES) >= 12 and len(mw.UNSEEN_FAMILIES) == 3
    assert len(set(map(mw.subject, mw.HELDOUT_SUBJECTS))) == len(mw.HELDOUT_SUBJECTS)


@pytest.mark.parametrize(
    ("distance", "things"),
    [
        (mw.content_distance, [mw.subject(n) for n in mw.HELDOUT_SUBJECTS[:12]]),
        (mw.style_distance, [mw.style(n) for n in mw.HELDOUT_STYLES[:12]]),
    ],
)
def test_distances_are_distances(distance, things):
    for a in things:
        assert distance(a, a) == 0
        for b in things:
            assert 0 <= distance(a, b) <= 1
            assert distance(a, b) == pytest.approx(distance(b, a))


def test_captions_say_what_is_seen_in_known_words():
    rng = np.random.default_rng(2)
    known = set(mw.vocabulary())
    for _ in range(300):
        thing, style, pose = mw.sample_subject(rng), mw.sample_style(rng), mw.sample_pose(rng)
        for look in (None, style):
            text = mw.caption(thing, look, pose, rng)
            assert set(text.split()) <= known
            assert thing.cls in text.split()
            assert look is None or f"{look.family} style" in text


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(UserError, match=r"no subject 'mugg_1'.*mug_1"):
        mw.subject("mugg_1")


def test_bank_pictures_depend_on_their_number_alone():
    (one, text), (again, _), (other, _) = bank.picture(7), bank.picture(7), bank.picture(8)
    assert np.array_equal(one, again) and text
    assert not np.array_equal(one, other)


def test_half_of_captions_keep_all_details_except_those_of_early_and_held_out_images():
    def whole(first: int) -> int:
        made = (bank.factors_of(first + k) for k in range(60))
        texts = [mw.caption(subject, style, pose) for subject, style, pose, _ in made]
        return sum(bank.picture(first + k)[1] == text for k, text in enumerate(texts))

    assert 25 <= whole(bank.DEVELOPMENT_FROM) <= 50
    assert whole(0) <= 20 and whole(bank.HELDOUT_FROM) <= 20
