"""Rows of the score stage: complete, unique, independent of the batch size, references embedded once."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_scorers import pictures, write_scorer

from lorabench.data.pairs import Concept, Pair, Reference
from lorabench.errors import UserError
from lorabench.metrics.load import load_scorers
from lorabench.metrics.truth import Readout, Truth
from lorabench.stages.score import COLUMNS, Item, References, check_unique, score, score_items

KEYS = {"dataset": "d", "world": "1", "method": "direct", "ablation": "none", "model": "micro"}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    root = tmp_path_factory.mktemp("scorers")
    for kind in ("dino", "clip", "csd"):
        write_scorer(root / kind, kind)
    return load_scorers(root)


def reference(picture, word="mug"):
    digest = hashlib.sha256(picture.tobytes()).hexdigest()
    return Reference(word, f"a {word}", digest, lambda: Image.fromarray(picture))


def pair_of(contents, styles, factors=None):
    content = Concept("mug_1", "content", "mug", (), tuple(reference(p) for p in contents), factors and factors[0])
    style = Concept("ink_1", "style", "ink style", (), tuple(reference(p) for p in styles), factors and factors[1])
    return Pair((content,), (style,), "a sks mug in szn style", "a mug in ink style")


def run(scorers, images, pair, **options):
    prompts, seeds = [pair.prompt] * len(images), list(range(len(images)))
    return score(images, pair, prompts, scorers, seeds=seeds, keys=KEYS, **options)


def test_one_row_per_image_metric_and_reference(scorers):
    images, pair = pictures(3), pair_of(pictures(2, seed=1), pictures(4, seed=2))
    rows = run(scorers, images, pair)
    assert all(tuple(row) == COLUMNS for row in rows)
    count = {}
    for row in rows:
        count[row["metric"]] = count.get(row["metric"], 0) + 1
    assert count == {
        "dino/content": 6, "clip_i/content": 6, "clip_i/style": 12, "clip_t": 3, "csd/content": 6, "csd/style": 12,
    }  # fmt: skip
    check_unique(rows)
    assert {row["backbone"] for row in rows} == {"dino@test", "clip@test", "csd@test"}
    assert {row["reference"] for row in rows if row["metric"] == "clip_t"} == {"a mug in ink style"}
    assert all(-1 <= row["value"] <= 1 for row in rows)
    with pytest.raises(RuntimeError, match="scored twice"):
        check_unique([*rows, rows[0]])


def test_an_image_scores_one_against_itself(scorers):
    images = pictures(1)
    rows = run(scorers, images, pair_of(images, images))
    assert all(row["value"] == pytest.approx(1, abs=1e-5) for row in rows if row["metric"] != "clip_t")


def test_scores_do_not_depend_on_batch_or_order(scorers):
    images, pair = pictures(5), pair_of(pictures(2, seed=1), pictures(1, seed=2))
    whole, single = run(scorers, images, pair), run(scorers, images, pair, batch=1)
    key = lambda row: (row["image"], row["metric"], row["reference"])  # noqa: E731
    whole, single = sorted(whole, key=key), sorted(single, key=key)
    assert [key(row) for row in whole] == [key(row) for row in single]
    np.testing.assert_allclose([r["value"] for r in whole], [r["value"] for r in single], atol=1e-5)


def test_paths_score_as_the_pictures_in_them(scorers, tmp_path):
    images, pair = pictures(2), pair_of(pictures(1, seed=1), pictures(1, seed=2))
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    assert run(scorers, paths, pair) == run(scorers, images, pair)
    paths[1].write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        run(scorers, paths, pair)


def test_references_are_embedded_once(scorers):
    calls = []

    def draw():
        calls.append(1)
        return Image.fromarray(pictures(1)[0])

    concept = Concept("mug_1", "content", "mug", (), (Reference("mug", "a mug", "0" * 64, draw),))
    references = References()
    first = references.concept(scorers[0], concept)
    assert torch.equal(first["content"], references.concept(scorers[0], concept)["content"])
    assert len(calls) == 1


def test_keys_that_an_item_lacks_are_left_out(scorers):
    pair = pair_of(pictures(1, seed=1), pictures(1, seed=2))
    rows = score_items([Item(pictures(1)[0], pair, {"prompt": "p", "seed": 0, "image": 0})], scorers)
    assert "method" not in rows[0]
    assert rows[0]["content"] == "mug_1"


def test_truth_is_read_where_the_factors_are_known(scorers):
    from lorabench.data import microworld as mw

    class Fixed(Readout):
        def label(self, unit):
            return [self.labels[0]] * len(unit)

        def name(self, unit):
            return [self.names[0]] * len(unit)

    none = torch.zeros(1, 1)
    truth = Truth(Fixed(["mug"], none, none, ["mug_2"], none), Fixed(["ink"], none, none, ["ink_1"], none), "t")
    for scorer, name in zip(scorers, ("dino@micro", "clip@micro", "csd@micro"), strict=True):
        scorer.name = name
    pair = pair_of(pictures(1, seed=1), pictures(1, seed=2), (mw.subject("mug_1"), mw.style("ink_1")))
    rows = run(scorers, pictures(2), pair, truth=truth)
    read = {row["metric"]: row["value"] for row in rows if row["backbone"] != "clip@micro" and "/" not in row["metric"]}
    assert read == {"class_acc": 1.0, "subject_r1": 0.0, "family_acc": 1.0, "style_r1": 1.0}
    photographs = pair_of(pictures(1, seed=1), pictures(1, seed=2))
    assert {row["role"] for row in run(scorers, pictures(1), photographs, truth=truth)} == {"content", "style", "text"}
    assert not any(row["metric"] == "class_acc" for row in run(scorers, pictures(1), photographs, truth=truth))
