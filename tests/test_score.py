"""Rows of the score stage: complete, unique, independent of the batch size, references embedded once."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_scorers import pictures, write_scorer

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.data.pairs import Concept, Pair, Reference, Scene
from lorabench.scoring.complete import check_rows, check_unique, expected_scores
from lorabench.scoring.description import ScorerFiles
from lorabench.scoring.load import load_scorer, load_scorers
from lorabench.scoring.references import References
from lorabench.scoring.rows import COLUMNS, ScoredImage, items_of
from lorabench.scoring.score import score_items
from lorabench.scoring.truth import Readout, Truth

KEYS = {"dataset": "d", "world": "1", "method": "direct", "ablation": "none", "model": "micro"}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    root = tmp_path_factory.mktemp("scorers")
    for kind in ("dino", "clip", "csd"):
        write_scorer(root / kind, kind)
    return load_scorers(root)


@pytest.fixture
def micro_scorers(scorers, monkeypatch):
    """The tiny scorers under the names that the readout of the microworld needs."""
    for scorer, name in zip(scorers, ("dino@micro", "clip@micro", "csd@micro"), strict=True):
        monkeypatch.setattr(scorer, "name", name)
    return scorers


class Fixed(Readout):
    """Reads the first label and the first name from every image."""

    def label(self, unit):
        return [self.labels[0]] * len(unit)

    def name(self, unit):
        return [self.names[0]] * len(unit)


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
    """each: images a scene; all of them by default."""
    seeds = list(range(len(images)))
    return score_items(items_of(images, pair, pair.shots(each or len(images)), seeds, KEYS), scorers, **options)


def test_one_row_per_image_metric_and_reference(scorers):
    images, pair = pictures(3), pair_of(pictures(2, seed=1), pictures(4, seed=2))
    rows = run(scorers, images, pair)
    assert all(tuple(row) == COLUMNS for row in rows)
    count = {}
    for row in rows:
        count[row["metric"]] = count.get(row["metric"], 0) + 1
    assert count == {
        "dino/content": 6, "dino/style": 12, "clip_i/content": 6, "clip_i/style": 12, "clip_t": 3, "clip_t/prompt": 3,
        "csd/content": 6, "csd/style": 12,
    }  # fmt: skip
    check_unique(rows)
    assert {row["backbone"] for row in rows} == {"dino@test", "clip@test", "csd@test"}
    assert {row["reference"] for row in rows if row["metric"] == "clip_t"} == {"a mug in ink style"}
    assert {row["reference"] for row in rows if row["role"] == "prompt"} == {"a sks mug in szn style"}
    assert all(-1 <= row["value"] <= 1 for row in rows)
    with pytest.raises(RuntimeError, match="scored twice"):
        check_unique([*rows, rows[0]])


def test_each_image_meets_the_text_of_its_own_scene(scorers):
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


def test_an_image_scores_one_against_itself(scorers):
    images = pictures(1)
    rows = run(scorers, images, pair_of(images, images))
    assert all(row["value"] == pytest.approx(1, abs=1e-5) for row in rows if not row["metric"].startswith("clip_t"))


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_scores_do_not_depend_on_the_batch(scorers, batch):
    """The rows are the same and in the same order; their values to rounding."""
    images, pair = pictures(9), pair_of(pictures(2, seed=1), pictures(1, seed=2))
    whole, other = run(scorers, images, pair), run(scorers, images, pair, batch=batch)
    without = [
        [{key: value for key, value in row.items() if key != "value"} for row in rows] for rows in (whole, other)
    ]
    assert without[0] == without[1] and [row["image"] for row in whole] == sorted(row["image"] for row in whole)
    np.testing.assert_allclose([r["value"] for r in whole], [r["value"] for r in other], atol=1e-5)


def test_paths_score_as_the_pictures_in_them(scorers, tmp_path):
    images, pair = pictures(2), pair_of(pictures(1, seed=1), pictures(1, seed=2))
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    assert run(scorers, paths, pair) == run(scorers, images, pair)
    paths[1].write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        run(scorers, paths, pair)


def drawn_concept(calls):
    """A concept whose references say when they are drawn."""

    def draw(seed):
        calls.append(seed)
        return Image.fromarray(pictures(1, seed=seed)[0])

    references = tuple(Reference("mug", "a mug", f"{seed}" * 64, partial(draw, seed)) for seed in (1, 2))
    return Concept("mug_1", "content", "mug", (), references)


@pytest.mark.parametrize("kept", [False, True])
def test_references_are_embedded_once(scorers, tmp_path, kept):
    calls = []
    concept, references = drawn_concept(calls), References(tmp_path if kept else None)
    first = references.concept(scorers[0], concept)
    assert torch.equal(first["content"], references.concept(scorers[0], concept)["content"])
    assert calls == [1, 2]
    pair = Pair((concept,), (replace(concept, role="style"),), Scene("a sks mug in szn style", "a mug in ink style"))
    for seed in (3, 4):
        run(scorers, pictures(2, seed=seed), pair, references=references)
    assert calls == [1, 2, 1, 2, 1, 2]  # for the other two scorers


def test_references_are_found_by_the_next_process(scorers, tmp_path):
    calls = []
    concept = drawn_concept(calls)
    made = References(tmp_path).concept(scorers[2], concept)
    text = References(tmp_path).text(scorers[1], "a mug")
    found = References(tmp_path)
    assert all(torch.equal(made[role], found.concept(scorers[2], concept)[role]) for role in made)
    assert calls == [1, 2]
    found.text(scorers[1], "a mug")
    scorers[1].tokenizer, tokenizer = None, scorers[1].tokenizer
    assert torch.equal(text, References(tmp_path).text(scorers[1], "a mug"))
    scorers[1].tokenizer = tokenizer
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3 and not list(tmp_path.rglob(".*"))
    for file in files:
        file.write_bytes(file.read_bytes()[:20])  # of a disk that was full
    again = References(tmp_path).concept(scorers[2], concept)
    assert calls == [1, 2, 1, 2] and torch.equal(again["style"], made["style"])


def test_an_embedding_does_not_depend_on_which_others_are_known(scorers, tmp_path):
    concept = Concept("mug_1", "content", "mug", (), tuple(reference(picture) for picture in pictures(5, seed=1)))
    fewer = replace(concept, images=(), references=concept.references[:2])
    whole = [References().concept(scorer, concept) for scorer in scorers]
    for scorer in scorers:
        References(tmp_path).concept(scorer, fewer)  # an earlier run with fewer references
    after = [References(tmp_path).concept(scorer, concept) for scorer in scorers]
    assert all(torch.equal(a[role], b[role]) for a, b in zip(whole, after, strict=True) for role in a)


def test_a_flipped_bit_of_a_kept_embedding_is_made_anew(scorers, tmp_path):
    calls = []
    concept = drawn_concept(calls)
    made = References(tmp_path).concept(scorers[2], concept)
    [first, second] = sorted(tmp_path.rglob("*.safetensors"))
    spoilt = bytearray(first.read_bytes())
    spoilt[-3] ^= 1
    first.write_bytes(spoilt)
    save_file(load_file(second), second)  # without a checksum
    again = References(tmp_path).concept(scorers[2], concept)
    assert calls == [1, 2, 1, 2] and all(torch.equal(made[role], again[role]) for role in made)


def test_references_of_other_weights_are_others(tmp_path, scorers):
    calls = []
    concept = drawn_concept(calls)
    first = References(tmp_path).concept(scorers[0], concept)
    other = named(tmp_path / "scorers", "dino@test", 7)
    second = References(tmp_path).concept(other, concept)
    assert calls == [1, 2, 1, 2] and not torch.allclose(first["content"], second["content"], atol=1e-3)


def named(root, name, seed):
    """A tiny DINO of that name with weights of its own."""
    folder = write_scorer(root / name, "dino")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "name": name}))
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(v.shape, generator=generator) for key, v in load_file(folder / "w.safetensors").items()}
    save_file(state, folder / "w.safetensors")
    return load_scorer(ScorerFiles.of(folder))


def test_several_backbones_of_a_kind_score_side_by_side(scorers, tmp_path):
    both = [*scorers, named(tmp_path, "dino@other", 1)]
    images, pair = pictures(3), pair_of(pictures(2, seed=1), pictures(1, seed=2))
    rows = run(both, images, pair)
    alone = run(both[3:], images, pair)
    assert [row for row in rows if row["backbone"] == "dino@other"] == alone
    assert [row for row in rows if row["backbone"] != "dino@other"] == run(scorers, images, pair)
    with pytest.raises(RuntimeError, match="lacks dino/content by dino@other"):
        items = [
            ScoredImage(image, pair, pair.text, {"prompt": pair.prompt, "image": i}) for i, image in enumerate(images)
        ]
        kept = [row for row in score_items(items, both) if (row["image"], row["backbone"]) != (1, "dino@other")]
        check_rows(kept, items, expected_scores({each.name: each.metrics for each in both}, truth=False))


@pytest.mark.parametrize("missing", ["dino/style", "clip_t", "class_acc", "style_r1"])
def test_metric_missing_from_all_images_is_an_error(micro_scorers, missing):
    pair = pair_of(pictures(1, seed=1), pictures(1, seed=2), (mw.subject("mug_1"), mw.style("ink_1")))
    rows = [row for row in run(micro_scorers, pictures(2), pair, truth=truth()) if row["metric"] != missing]
    images = items_of(pictures(2), pair, pair.shots(2), (0, 1), KEYS)
    expected = expected_scores({scorer.name: scorer.metrics for scorer in micro_scorers}, truth=True)
    with pytest.raises(RuntimeError, match=f"image 0 of mug_1\\+ink_1 lacks {missing} by"):
        check_rows(rows, images, expected)


def test_pictures_are_resized_once_for_all_that_want_the_same_size(scorers, monkeypatch):
    from lorabench.scoring.preprocess import Preprocess

    cut, sizes = Preprocess.cut, []
    monkeypatch.setattr(Preprocess, "cut", lambda self, images: sizes.append(len(images)) or cut(self, images))
    run(scorers, pictures(3, side=20), pair_of(pictures(2, seed=1), pictures(1, seed=2)))
    assert sizes.count(3) == 1


def test_keys_that_an_item_lacks_are_left_out(scorers):
    pair = pair_of(pictures(1, seed=1), pictures(1, seed=2))
    keys = {"prompt": "p", "seed": 0, "image": 0}
    rows = score_items([ScoredImage(pictures(1)[0], pair, "a mug in ink style", keys)], scorers)
    assert "method" not in rows[0]
    assert rows[0]["content"] == "mug_1"


def test_truth_is_read_where_the_factors_are_known(micro_scorers):
    pair = pair_of(pictures(1, seed=1), pictures(1, seed=2), (mw.subject("mug_1"), mw.style("ink_1")))
    rows = run(micro_scorers, pictures(2), pair, truth=truth())
    read = {row["metric"]: row["value"] for row in rows if row["backbone"] != "clip@micro" and "/" not in row["metric"]}
    assert read == {"class_acc": 1.0, "subject_r1": 0.0, "family_acc": 1.0, "style_r1": 1.0}
    photographs = pair_of(pictures(1, seed=1), pictures(1, seed=2))
    assert {row["role"] for row in run(micro_scorers, pictures(1), photographs, truth=truth())} == {
        "content", "style", "text", "prompt",
    }  # fmt: skip
    assert not any(row["metric"] == "class_acc" for row in run(micro_scorers, pictures(1), photographs, truth=truth()))
