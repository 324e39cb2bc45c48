"""Pairs of the microworld by rule, before any LoRA is trained."""

from collections import Counter
from dataclasses import replace

import pytest

from lorabench.base import UserError
from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.data import microworld as mw
from lorabench.data.catalogue import load_pairs
from lorabench.data.matching import select_world
from lorabench.data.scenes import Prompts
from lorabench.tasks import hypernetwork

SPEC = MicroworldSpec(
    name="microworld", subjects="all", styles="all", contents=None, pairs="matched", count=32, pairs_seed=0,
    content_images=1, style_images=1, references=1,
)  # fmt: skip


def test_matched_pairs_use_each_name_once_and_all_kinds_alike():
    pairs = select_world(SPEC)
    subjects, styles = ([pair[role][0] for pair in pairs] for role in (0, 1))
    assert len(set(subjects)) == len(set(styles)) == 32
    assert set(subjects) <= set(mw.HELDOUT_SUBJECTS) and set(styles) <= set(mw.HELDOUT_STYLES)
    classes, families = (Counter(mw.kind_of(name) for name in names) for names in (subjects, styles))
    assert set(classes) == set(mw.CLASSES) and set(classes.values()) == {2, 3}
    assert set(families) == set(mw.FAMILIES) and set(families.values()) == {2}


def test_matched_pairs_depend_on_seed_and_not_on_order_of_names():
    shuffled = replace(SPEC, subjects=mw.HELDOUT_SUBJECTS[::-1], styles=mw.HELDOUT_STYLES[::-1])
    assert select_world(shuffled) == select_world(SPEC)
    assert select_world(replace(SPEC, pairs_seed=1)) != select_world(SPEC)
    assert select_world(replace(SPEC, count=8)) == select_world(SPEC)[:8]


def test_crossed_pairs_are_product_in_order_of_names():
    spec = replace(SPEC, pairs="crossed", subjects=["mug_1", "cat_1"], styles=["ink_1", "neon_1"])
    assert select_world(spec) == [((s,), (t,)) for s in ("mug_1", "cat_1") for t in ("ink_1", "neon_1")]


def test_typed_pairs_are_taken_as_they_are():
    pairs = load_pairs(replace(SPEC, pairs=["mug_1+cat_1/ink_1", "duck_1/neon_1+gold_1"]), Prompts())
    assert [pair.name for pair in pairs] == ["mug_1+cat_1+ink_1", "duck_1+neon_1+gold_1"]
    assert [len(pair.contents) for pair in pairs] == [2, 1]


def test_development_names_are_set():
    spec = replace(SPEC, pairs="crossed", subjects="development", styles="development")
    pairs = select_world(spec)
    assert len(pairs) == len(mw.DEVELOPMENT_SUBJECTS) * len(mw.DEVELOPMENT_STYLES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": "matchd"}, "did you mean matched"),
        ({"subjects": ["mug_1", "cat_1"]}, "must be at most 2, .* use dataset.count=2"),
        ({"pairs": ["mug_1"]}, r"use dataset.pairs=\[mug_1/ink_1\]"),
        ({"pairs": ["mug_1/ink_1/neon_1"]}, r"use dataset.pairs=\[mug_1/ink_1\]"),
    ],
)
def test_bad_rules_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        select_world(replace(SPEC, **changes))


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("dataset:\n  pairs: matched\n", True),
        ("dataset: {subjects: all}\n", True),
        ("hydra: {sweeper: {params: {dataset.pairs: 'crossed,matched'}}}\n", True),
        ("dataset:\n  subjects: [cat_1]  # all of them\n", False),
        ("# pairs: matched\nname: x\n", False),
    ],
)
def test_training_names_of_hypernetwork_are_new_to_pairs_chosen_by_rule(text, refused, tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_text(text)
    monkeypatch.setattr(hypernetwork, "EXPERIMENTS", tmp_path)
    spec = replace(SPEC, pairs="crossed", subjects=["teapot_1"], styles=["neon_1"])
    pairs = load_pairs(spec, Prompts())
    if refused:
        with pytest.raises(UserError, match="experiments=x has teapot_1"):
            hypernetwork.check_disjoint(pairs, [])
    else:
        hypernetwork.check_disjoint(pairs, [])
    developed = load_pairs(replace(spec, subjects=["mug_dev1"], styles=["ink_dev1"]), Prompts())
    hypernetwork.check_disjoint(developed, [])
