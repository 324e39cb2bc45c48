"""Copying, diversity and the scores read in the world's factors, against plain formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_score import KEYS, pair_of, pictures, reference
from tiny_scorers import load_tiny

from lorabench.data import microworld as mw
from lorabench.data.concepts import ROLES
from lorabench.data.scenes import Scene
from lorabench.report import protocols
from lorabench.scoring.complete import expected_scores
from lorabench.scoring.embeddings import Embeddings, embed_images, embed_texts
from lorabench.scoring.factor_rows import BACKBONE, factor_rows, ground_of
from lorabench.scoring.factors import WIDTH
from lorabench.scoring.rows import Embedded, images_of
from lorabench.scoring.score import score_rows
from lorabench.scoring.truth import CANDIDATES, Readout, Truth


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("scorers"))


SCENES = (Scene("a sks mug in szn style", "a mug in ink style"), Scene("another", "a mug"), Scene("a third", "a mug"))


@pytest.fixture
def pair():
    plain = pair_of(pictures(2, seed=1), pictures(2, seed=2))
    trained = [tuple(reference(p) for p in pictures(3, seed=seed)) for seed in (5, 6)]
    [content], [style] = plain.contents, plain.styles
    return replace(
        plain, contents=(replace(content, images=trained[0]),), styles=(replace(style, images=trained[1]),),
        scenes=SCENES[:2],
    )  # fmt: skip


def embedded(pair, scorer, images):
    def by_image(references):
        rows = embed_images(references, [scorer], 1)[0].rows
        return {each.sha256: {role: rows[role][i] for role in rows} for i, each in enumerate(references)}

    texts = [text for scene in pair.drawn for text in (scene.text, scene.prompt)]
    known = dict(zip(texts, embed_texts(texts, scorer).rows["text"], strict=True)) if images.text_metric else {}
    training = [each for concept in pair.concepts for each in concept.images] if images.metric == "dino" else []
    return Embedded(
        images,
        by_image([each for concept in pair.concepts for each in concept.references]),
        known,
        by_image(training) if training else {},
    )


def score(pair, images, scorers, each):
    found = embed_images(images, scorers, 32)
    backbones = [embedded(pair, scorer, own) for scorer, own in zip(scorers, found, strict=True)]
    expected = expected_scores({scorer.name: scorer.metrics for scorer in scorers}, False)
    items = images_of(pair, pair.shots(each), list(range(len(images))), KEYS)
    return score_rows(items, backbones, expected), found[0].rows["content"]


def test_nearest_training_image_and_spread_are_those_of_plain_cosines(scorers, pair):
    import pandas as pd

    images = pictures(4)
    images[1] = pictures(3, seed=5)[2]  # repeats the third training image of the subject
    rows, vectors = score(pair, images, scorers, 2)
    trained = {role: embed_images(pair.of(role)[0].images, scorers[:1], 1)[0].rows["content"] for role in ROLES}
    frame = pd.DataFrame(rows)
    for role, others in trained.items():
        column = protocols.every({f"copy/{role}": ["dino@test"]})[0]
        values = protocols.image_values(frame, column)["value"].to_numpy()
        assert values == pytest.approx((vectors @ others.T).max(dim=1).values.numpy(), abs=1e-5)
    copied = frame[(frame["metric"] == "copy/content") & (frame["image"] == 1)]
    assert len(copied) == 3 and copied["value"].max() == pytest.approx(1, abs=1e-5)
    assert copied.loc[copied["value"].idxmax(), "reference"] == pair.contents[0].images[2].sha256[:12]
    spread = frame[frame["metric"] == "diversity"].set_index("image")["value"]
    alike = (vectors @ vectors.T).numpy()
    assert spread.tolist() == pytest.approx(
        [1 - alike[0, 1], 1 - alike[0, 1], 1 - alike[2, 3], 1 - alike[2, 3]], abs=1e-5
    )


def test_image_alone_with_its_prompt_has_no_diversity(scorers, pair):
    three = replace(pair, scenes=SCENES)
    rows, _ = score(three, pictures(3), scorers, 1)
    assert not any(row["metric"] == "diversity" for row in rows)
    assert {row["metric"] for row in rows} >= {"copy/content", "copy/style"}


def test_missing_copying_is_found(scorers, pair):
    found = embed_images([*pictures(2)], scorers, 32)
    without = [replace(embedded(pair, scorer, own), training={}) for scorer, own in zip(scorers, found, strict=True)]
    items = images_of(pair, pair.shots(1), [0, 1], KEYS)
    expected = expected_scores({scorer.name: scorer.metrics for scorer in scorers}, False)
    with pytest.raises(RuntimeError, match="lacks copy/content by dino@test, copy/style by dino@test"):
        score_rows(items, without, expected)


def test_development_names_are_recognized_among_themselves(scorers, pair, monkeypatch):
    """The image has the prototype of a development subject and of a held-out one."""
    for scorer, name in zip(scorers, ("dino@micro", "clip@micro", "csd@micro"), strict=True):
        monkeypatch.setattr(scorer, "name", name)
    found = embed_images([*pictures(2)], scorers, 32)

    def readout(role, kinds, alike):
        names = [name for split in CANDIDATES.values() for name in split[ROLES.index(role)]]
        unit = {each.name: each for each in found}[f"{'dino' if role == 'content' else 'csd'}@micro"].rows[role]
        prototypes = -unit[:1].repeat(len(names), 1)
        for name in alike:
            prototypes[names.index(name)] = unit[0]
        return Readout(kinds, torch.zeros(len(kinds), unit.shape[1]), torch.zeros(len(kinds)), names, prototypes)

    truth = Truth(readout("content", ["mug"], ["mug_dev2", "cat_2"]), readout("style", ["ink"], ["ink_1"]), "t")
    [content], [style] = pair.contents, pair.styles
    expected = expected_scores({scorer.name: scorer.metrics for scorer in scorers}, True)
    for name, right in (("mug_dev2", 1), ("mug_dev1", 0), ("cat_2", 1), ("mug_1", 0)):
        named = replace(
            pair,
            contents=(replace(content, name=name, factors=mw.subject(name)),),
            styles=(replace(style, name="ink_1", factors=mw.style("ink_1")),),
        )
        backbones = [embedded(named, scorer, own) for scorer, own in zip(scorers, found, strict=True)]
        items = images_of(named, named.shots(1), [0, 1], KEYS)
        rows = score_rows(items, backbones, expected, truth)
        values = {row["metric"]: row["value"] for row in rows if row["image"] == 0}
        assert (values["subject_r1"], values["style_r1"]) == (right, 1)


def made_outputs(count=4):
    torch.manual_seed(2)
    return Embeddings(BACKBONE, "truth", "", "v", {"factors": torch.randn(count, WIDTH)})


def test_truth_is_one_minus_distance_in_factors(pair):
    from lorabench.scoring.factors import content_distances, labels, read, style_distances

    [content], [style] = pair.contents, pair.styles
    known = replace(
        pair,
        contents=(replace(content, factors=mw.subject("mug_1")),),
        styles=(replace(style, factors=mw.style("ink_1")),),
        scenes=(Scene("a sks mug on the beach", "a mug on the beach", context="a {} on the beach"),),
    )
    outputs = made_outputs()
    items = images_of(known, known.shots(4), range(4), KEYS)
    rows = factor_rows(items, outputs)
    found = read(outputs.rows["factors"])
    apart = {
        "truth/content": content_distances(found, mw.subject("mug_1")),
        "truth/style": style_distances(found, mw.style("ink_1")),
    }  # fmt: skip
    for index, own in enumerate(rows):
        values = {row["metric"]: row["value"] for row in own}
        assert values.keys() == {"truth/content", "truth/style", "ground_acc"}
        for metric, distances in apart.items():
            assert values[metric] == pytest.approx(1 - distances[index].item(), abs=1e-6)
        assert values["ground_acc"] == float(labels(found, "scene")[index] == "beach")
    assert factor_rows(images_of(pair, pair.shots(2), range(4), KEYS), outputs) == [[], [], [], []]


def test_ground_is_that_of_context():
    assert ground_of("a {} at night") == "night" and ground_of("") is None


def test_columns_of_copying_stand_beside_fidelity():
    metrics = ["csd/style", "copy/content", "dino/content", "diversity", "copy/style"]
    columns = protocols.every({metric: ["dino@test"] for metric in metrics})
    assert [column.name for column in columns] == [
        "dino/content",
        "copy/content",
        "diversity",
        "csd/style",
        "copy/style",
    ]
    assert [column.spec.references for column in columns] == ["mean", "max", "mean", "mean", "max"]
