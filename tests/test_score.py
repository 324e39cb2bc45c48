"""Rows of the score stage: complete, unique, independent of the batch size, references embedded once."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_scorers import load_tiny, pictures, write_scorer

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.data.concepts import Concept, Reference
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Scene
from lorabench.scoring.complete import check_rows, check_unique, expected_scores
from lorabench.scoring.description import ScorerFiles
from lorabench.scoring.embeddings import TEXT, Embeddings, embed_images, embed_texts
from lorabench.scoring.load import load_scorer
from lorabench.scoring.rows import COLUMNS, Embedded, ScoredImage, images_of
from lorabench.scoring.score import score_rows
from lorabench.scoring.truth import Readout, Truth

KEYS = {"dataset": "d", "world": "1", "use": "joint", "method": "direct", "ablation": "none", "model": "micro"}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("scorers"))


@pytest.fixture
def micro_scorers(scorers, monkeypatch):
    """Return the tiny scorers with the names that the readout of the microworld needs."""
    for scorer, name in zip(scorers, ("dino@micro", "clip@micro", "csd@micro"), strict=True):
        monkeypatch.setattr(scorer, "name", name)
    return scorers


class Fixed(Readout):
    """A readout that returns the first label and name for every image."""

    def label(self, unit):
        return [self.labels[0]] * len(unit)

    def name(self, unit):
        return [self.names[0]] * len(unit)

    def among(self, names):
        return self


def truth():
    none = torch.zeros(1, 1)
    return Truth(Fixed(["mug"], none, none, ["mug_2"], none), Fixed(["ink"], none, none, ["ink_1"], none), "t")


def reference(picture, word="mug"):
    digest = hashlib.sha256(picture.tobytes()).hexdigest()
    return Reference(word, f"a {word}", digest, lambda: Image.fromarray(picture))


def pair_of(contents, styles, factors=None):
    content = Concept("mug_1", "content", "mug", (), tuple(reference(p) for p in contents), factors and factors[0])
    style = Concept("ink_1", "style", "ink style", (), tuple(reference(p) for p in styles), factors and factors[1])
    return Pair((content,), (style,), Scene("a sks mug in szn style", "a mug in ink style"))


def run(scorers, images, pair, each=None, **options):
    """Score images of a pair, `each` per scene; all of them by default."""
    seeds = list(range(len(images)))
    return score(images_of(pair, pair.shots(each or len(images)), seeds, KEYS), images, scorers, **options)


def score(items, images, scorers, truth=None, batch=32):
    """Embed images, references and texts, and score them."""
    pair, found = items[0].pair, embed_images(images, scorers, batch)
    backbones = [embedded(pair, scorer, own) for scorer, own in zip(scorers, found, strict=True)]
    expected = expected_scores({scorer.name: scorer.metrics for scorer in scorers}, truth is not None)
    return score_rows(items, backbones, expected, truth)


def embedded(pair, scorer, images):
    references = [each for concept in pair.concepts for each in concept.references]
    rows = embed_images(references, [scorer], 1)[0].rows
    vectors = {each.sha256: {role: rows[role][i] for role in rows} for i, each in enumerate(references)}
    texts = [text for scene in pair.drawn for text in (scene.text, scene.prompt)]
    known = dict(zip(texts, embed_texts(texts, scorer).rows[TEXT], strict=True)) if images.text_metric else {}
    return Embedded(images, vectors, known)


def test_one_row_per_image_metric_and_reference(scorers):
    images, pair = pictures(3), pair_of(pictures(2, seed=1), pictures(4, seed=2))
    rows = run(scorers, images, pair)
    assert all(tuple(row) == COLUMNS for row in rows)
    count = {}
    for row in rows:
        count[row["metric"]] = count.get(row["metric"], 0) + 1
    assert count == {
        "dino/content": 6, "dino/style": 12, "clip_i/content": 6, "clip_i/style": 12, "clip_t": 3, "clip_t/prompt": 3,
        "csd/content": 6, "csd/style": 12, "diversity": 3,
    }  # fmt: skip
    check_unique(rows)
    assert {row["backbone"] for row in rows} == {"dino@test", "clip@test", "csd@test"}
    assert {row["reference"] for row in rows if row["metric"] == "clip_t"} == {"a mug in ink style"}
    assert {row["reference"] for row in rows if row["role"] == "prompt"} == {"a sks mug in szn style"}
    assert all(-1 <= row["value"] <= 1 for row in rows if row["metric"] != "diversity")
    with pytest.raises(RuntimeError, match="scored twice"):
        check_unique([*rows, rows[0]])


def test_each_image_meets_text_of_its_own_scene(scorers):
    scenes = (Scene("a sks mug in the snow in szn style", "a mug in the snow in ink style"),
              Scene("a sks mug on the beach in szn style", "a mug on the beach in ink style"))  # fmt: skip
    pair = replace(pair_of(pictures(1, seed=1), pictures(1, seed=2)), scenes=scenes)
    rows = run(scorers, pictures(4), pair, 2)
    for image in range(4):
        own = {row["role"]: row for row in rows if row["image"] == image and row["metric"].startswith("clip_t")}
        scene = scenes[image // 2]
        assert (own["prompt"]["reference"], own["text"]["reference"]) == scene[:2]
        assert own["text"]["prompt"] == scene.prompt
    texts = {row["value"] for row in rows if row["role"] == "text" and row["image"] < 2}
    assert len(texts) == 2  # the same text, other images


def test_image_scores_one_against_itself(scorers):
    images = pictures(1)
    rows = run(scorers, images, pair_of(images, images))
    assert all(row["value"] == pytest.approx(1, abs=1e-5) for row in rows if not row["metric"].startswith("clip_t"))


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_scores_do_not_depend_on_batch(scorers, batch):
    """Check that rows are in the same order and that values are equal up to rounding."""
    images, pair = pictures(9), pair_of(pictures(2, seed=1), pictures(1, seed=2))
    whole, other = run(scorers, images, pair), run(scorers, images, pair, batch=batch)
    without = [
        [{key: value for key, value in row.items() if key != "value"} for row in rows] for rows in (whole, other)
    ]
    assert without[0] == without[1] and [row["image"] for row in whole] == sorted(row["image"] for row in whole)
    np.testing.assert_allclose([r["value"] for r in whole], [r["value"] for r in other], atol=1e-5)


def test_paths_score_as_pictures_in_them(scorers, tmp_path):
    images, pair = pictures(2), pair_of(pictures(1, seed=1), pictures(1, seed=2))
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    assert run(scorers, paths, pair) == run(scorers, images, pair)
    paths[1].write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        run(scorers, paths, pair)


def test_embeddings_survive_saving(scorers, tmp_path):
    for scorer in scorers:
        [found] = embed_images([*pictures(3)], [scorer], 2)
        found.save(tmp_path)
        read = Embeddings.load(tmp_path)
        assert (read.name, read.metric, read.text_metric, read.version) == (
            scorer.name, scorer.metric, "clip_t" if scorer.metric == "clip_i" else "", scorer.version,
        )  # fmt: skip
        assert read.rows.keys() == found.rows.keys()
        assert all(torch.equal(read.rows[role], found.rows[role]) for role in found.rows)


def test_embedding_does_not_depend_on_other_references(scorers):
    references = [reference(picture) for picture in pictures(5, seed=1)]
    whole, fewer = (embed_images(some, scorers, 1) for some in (references, references[:2]))
    assert all(torch.equal(a.rows[r][:2], b.rows[r]) for a, b in zip(whole, fewer, strict=True) for r in a.rows)


def test_image_is_decoded_once_for_all_backbones(scorers):
    calls = []
    image = pictures(1)[0]
    drawn = Reference("mug", "a mug", "0" * 64, lambda: calls.append(1) or Image.fromarray(image))
    assert len(embed_images([drawn, drawn], scorers, 1)) == 3 and len(calls) == 2


def named(root, name, seed):
    """Write a tiny DINO with this name and its own weights."""
    folder = write_scorer(root / name, "dino")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "name": name}))
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(v.shape, generator=generator) for key, v in load_file(folder / "w.safetensors").items()}
    save_file(state, folder / "w.safetensors")
    return load_scorer(ScorerFiles.of(folder))


def test_several_backbones_of_kind_score_side_by_side(scorers, tmp_path):
    both = [*scorers, named(tmp_path, "dino@other", 1)]
    images, pair = pictures(3), pair_of(pictures(2, seed=1), pictures(1, seed=2))
    rows = run(both, images, pair)
    single = run(both[3:], images, pair)
    assert [row for row in rows if row["backbone"] == "dino@other"] == single
    assert [row for row in rows if row["backbone"] != "dino@other"] == run(scorers, images, pair)
    with pytest.raises(RuntimeError, match="lacks dino/content by dino@other"):
        kept = [row for row in rows if (row["image"], row["backbone"]) != (1, "dino@other")]
        check_rows(
            kept,
            images_of(pair, pair.shots(3), range(3), KEYS),
            expected_scores({each.name: each.metrics for each in both}, truth=False),
        )


@pytest.mark.parametrize("missing", ["dino/style", "clip_t", "class_acc", "style_r1"])
def test_metric_missing_from_all_images_is_error(micro_scorers, missing):
    pair = pair_of(pictures(1, seed=1), pictures(1, seed=2), (mw.subject("mug_1"), mw.style("ink_1")))
    rows = [row for row in run(micro_scorers, pictures(2), pair, truth=truth()) if row["metric"] != missing]
    images = images_of(pair, pair.shots(2), (0, 1), KEYS)
    expected = expected_scores({scorer.name: scorer.metrics for scorer in micro_scorers}, truth=True)
    with pytest.raises(RuntimeError, match=f"image 0 of mug_1\\+ink_1 lacks {missing} by"):
        check_rows(rows, images, expected)


def test_pictures_are_resized_once_for_all_that_want_same_size(scorers, monkeypatch):
    from lorabench.scoring.preprocess import Preprocess

    cut, sizes = Preprocess.cut, []
    monkeypatch.setattr(Preprocess, "cut", lambda self, images: sizes.append(len(images)) or cut(self, images))
    run(scorers, pictures(3, side=20), pair_of(pictures(2, seed=1), pictures(1, seed=2)))
    assert sizes.count(3) == 1


def test_keys_that_item_lacks_are_left_out(scorers):
    pair = pair_of(pictures(1, seed=1), pictures(1, seed=2))
    keys = {"prompt": "p", "seed": 0, "image": 0}
    texted = replace(pair, scenes=(Scene("p", "a mug in ink style"),))
    rows = score([ScoredImage(texted, "a mug in ink style", keys)], pictures(1), scorers)
    assert "method" not in rows[0]
    assert rows[0]["content"] == "mug_1"


def test_truth_is_read_where_factors_are_known(micro_scorers):
    pair = pair_of(pictures(1, seed=1), pictures(1, seed=2), (mw.subject("mug_1"), mw.style("ink_1")))
    rows = run(micro_scorers, pictures(2), pair, truth=truth())
    read = {row["metric"]: row["value"] for row in rows if row["metric"].endswith(("_acc", "_r1"))}
    assert read == {"class_acc": 1.0, "subject_r1": 0.0, "family_acc": 1.0, "style_r1": 1.0}
    photographs = pair_of(pictures(1, seed=1), pictures(1, seed=2))
    assert {row["role"] for row in run(micro_scorers, pictures(1), photographs, truth=truth())} == {
        "content", "style", "text", "prompt",
    }  # fmt: skip
    assert not any(row["metric"] == "class_acc" for row in run(micro_scorers, pictures(1), photographs, truth=truth()))
