"""Training of the micro scorers (bank, losses, resuming), and the packaged ones."""

import gzip
import json
import shutil

import numpy as np
import pytest
import torch

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.scoring.clip import Clip
from lorabench.scoring.description import ScorerFiles
from lorabench.scoring.files import MICRO_SCORERS, ScorerSet
from lorabench.scoring.load import load_scorer, load_scorers
from lorabench.scoring.truth import load_truth
from pretraining import scorer_losses as losses
from pretraining import scorers as training
from pretraining.checkpoint import Checkpoint
from pretraining.scorer_bank import PHOTOS, STYLES, SUBJECTS, VIEWS, ScorerBank, draw_block
from pretraining.scorer_batches import degrade, grid_batch
from pretraining.scorer_models import make_config


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    bank = ScorerBank(tmp_path_factory.mktemp("bank"), 2)
    bank.build()
    return bank


def test_blocks_are_grids_without_heldout_things():
    block = draw_block(3)
    assert block == draw_block(3) != draw_block(4)
    assert len(block.subjects) == SUBJECTS
    assert len({s.cls for s in block.subjects}) == 2
    assert len({s.family for s in block.styles}) == 4
    assert [block.style_of(v) is None for v in range(VIEWS)] == [False] * STYLES + [True] * PHOTOS
    for subject in block.subjects:
        assert min(mw.content_distance(subject, mw.subject(n)) for n in mw.HELDOUT_SUBJECTS) > 0.01


def test_bank_holds_what_factors_say_and_continues(bank):
    block = draw_block(1)
    picture = mw.render(block.subjects[5], block.style_of(2), block.poses[5][2], 64)
    np.testing.assert_array_equal(bank.pixels[1, 5, 2], picture)
    bank.done_path.write_text("1")
    drawn = []
    again = ScorerBank(bank.path.parent, 2)
    again.build(drawn.append)
    assert drawn == [2]
    np.testing.assert_array_equal(again.pixels[1, 5, 2], picture)


def test_grid_batches_follow_from_their_generator(bank):
    one, two = (grid_batch(bank, np.random.default_rng(7), blocks=2, rows=3, styled=2, photos=1) for _ in range(2))
    assert torch.equal(one.pixels, two.pixels)
    assert one.texts == two.texts
    assert one.pixels.shape == (2 * 3 * 3, 3, 64, 64)
    assert len(set(one.subject_ids.tolist())) == 6
    assert [s is None for s in one.styles[:3]] == [False, False, True]
    assert one.style_ids[2] == -1


def test_degrading_leaves_some_pictures_alone():
    pixels = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    same = (degrade(pixels, np.random.default_rng(0)) == pixels).flatten(1).all(1)
    assert 4 < int(same.sum()) < 32


def test_supervised_contrastive_is_papers_sum():
    unit = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labels, t = [0, 0, 0, 1, 1, 2], 0.1
    plain = []
    s = (unit @ unit.T).double().numpy() / t
    for i in range(5):  # the last one has no positive
        positives = [j for j in range(6) if j != i and labels[j] == labels[i]]
        norm = np.log(sum(np.exp(s[i, a]) for a in range(6) if a != i))
        plain.append(-np.mean([s[i, p] - norm for p in positives]))
    assert float(losses.supervised_contrastive(unit, torch.tensor(labels), t)) == pytest.approx(
        np.mean(plain), rel=1e-5
    )


def test_image_text_contrastive_reduces_to_clips_loss_and_forgives_equal_texts():
    a, b = (torch.nn.functional.normalize(torch.randn(3, 5), dim=1) for _ in range(2))
    scale = torch.tensor(10.0)
    logits, diagonal = scale * a @ b.T, torch.arange(3)
    clip = 0.5 * sum(torch.nn.functional.cross_entropy(x, diagonal) for x in (logits, logits.T))
    assert float(losses.image_text_contrastive(a, b, torch.eye(3) > 0, scale)) == pytest.approx(float(clip), rel=1e-5)
    unit = torch.eye(2)[[0, 0, 1]]
    same = unit @ unit.T > 0.5
    assert float(losses.image_text_contrastive(unit, unit, same, torch.tensor(50.0))) == pytest.approx(
        np.log(2) * 2 / 3
    )


def test_disagreement_is_zero_for_true_order():
    angles = torch.tensor([0.0, 0.4, 1.1, 1.5])
    unit = torch.stack([angles.cos(), angles.sin()], dim=1)
    distances = 1 - unit @ unit.T
    assert float(losses.disagreement(unit, distances)) == pytest.approx(0, abs=1e-5)
    assert float(losses.disagreement(unit, 3 - distances - torch.diag(torch.full((4,), 3.0)))) == pytest.approx(
        2, abs=1e-5
    )


def test_distance_matrix_and_targets_know_photographs():
    a, b = mw.style("ink_1"), mw.style("neon_2")
    matrix = losses.distance_matrix([a, None, b, a], mw.style_distance)
    assert matrix[0, 2] == pytest.approx(mw.style_distance(a, b))
    assert matrix[0, 3] == matrix[0, 0] == 0
    assert bool(torch.isnan(matrix[1]).all())
    targets = losses.style_targets([a, None])
    assert float(losses.masked_mse(torch.zeros_like(targets), targets)) == pytest.approx(
        float(targets[0].square().mean())
    )
    assert losses.subject_targets([mw.subject("mug_1")]).shape == (1, 18)


def test_interrupted_training_ends_with_same_weights(bank, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    task = training.TASKS["dino"]
    monkeypatch.setattr(task, "batch", lambda self, bank, rng: grid_batch(bank, rng, 2, 2, 1, 1))

    def train(name, report=lambda line: None):
        cache = tmp_path / name
        cache.mkdir(exist_ok=True)
        folder = training.train_scorer("dino", cache / "out", 3, bank, cache, report)
        return load_file(folder / "model.safetensors")

    whole = train("whole")
    steps, loss = [], task.loss

    def stop_at_third(self, batch):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(task, "loss", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        train("stopped")
    monkeypatch.setattr(task, "loss", loss)
    resumed = train("stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_interrupted_save_leaves_previous_checkpoint(tmp_path, monkeypatch):
    network, save = torch.nn.Linear(2, 2), torch.save
    checkpoint = Checkpoint(tmp_path / "training.pt", {"network": network}, "step")
    assert checkpoint.restore() == 0
    checkpoint.save(1)
    kept = network.weight.detach().clone()

    def cut(state, path):
        save(state, path)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut)
    torch.nn.init.zeros_(network.weight)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(2)
    assert checkpoint.restore() == 1 and torch.equal(network.weight, kept)


def test_clip_task_learns_from_captions(bank, tmp_path):
    task = training.TASKS["clip"](make_config("clip", tmp_path), tmp_path)
    batch = grid_batch(bank, np.random.default_rng(0), blocks=2, rows=2, styled=1, photos=1)
    loss = task.loss(batch)["contrast"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for name, p in task.network.named_parameters() if "token_embedding" in name)


def test_packaged_scorers_are_small_named_and_fit_together():
    scorers = load_scorers()
    assert [s.name for s in scorers] == ["dino@micro", "clip@micro", "csd@micro"]
    assert sum(path.stat().st_size for path in MICRO_SCORERS.rglob("*") if path.is_file()) < 12.5e6
    truth = load_truth(scorers)
    figures = json.loads((MICRO_SCORERS / "figures.json").read_text())
    assert figures["world"] == mw.VERSION
    rng = np.random.default_rng(0)
    names, style = mw.HELDOUT_SUBJECTS[::8], mw.style("ink_1")
    images = np.stack([mw.render(mw.subject(n), style, mw.sample_pose(rng)) for n in names])
    read = truth.read({s.name: s.embed(images) for s in scorers})
    assert sum(a == mw.subject(n).cls for a, n in zip(read["class"], names, strict=True)) >= len(names) - 1
    assert read["family"].count("ink") >= len(names) - 1
    names = mw.DEVELOPMENT_SUBJECTS[::2]
    images = np.stack([mw.render(mw.subject(n), None, mw.sample_pose(rng)) for n in names])
    read = truth.among("development").read({s.name: s.embed(images) for s in scorers})
    assert sum(a == b for a, b in zip(read["subject"], names, strict=True)) >= len(names) - 1


def test_packaged_clip_tells_sentences_apart():
    clip = load_scorers()[1]
    assert isinstance(clip, Clip)
    image = mw.render(mw.subject("rocket_1"), mw.style("neon_1"), mw.Pose())
    texts = clip.embed_text(["a rocket in neon style", "a duck in watercolor style", "a photo of a cat in the snow"])
    assert int((clip.embed(image[None])["content"] @ texts.T).argmax()) == 0


def test_clip_version_and_digest_change_with_tokenizer(tmp_path):
    shutil.copytree(MICRO_SCORERS / "clip", tmp_path / "clip")
    files = ScorerFiles.of(tmp_path / "clip")
    before = load_scorer(files).version
    merges = tmp_path / "clip" / files.contents()[-1].name
    lines = gzip.decompress(merges.read_bytes()).splitlines(keepends=True)
    merges.write_bytes(gzip.compress(b"".join([lines[0], *lines[:0:-1]])))
    assert load_scorer(files).version != before
    assert merges in ScorerSet((files,)).sources()


def test_readout_without_development_names_is_refused(tmp_path):
    shutil.copytree(MICRO_SCORERS / "truth", tmp_path / "truth")
    path = tmp_path / "truth" / "config.json"
    config = json.loads(path.read_text())
    config["style"]["names"] = mw.HELDOUT_STYLES
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no prototype of poster_dev1"):
        load_truth(load_scorers(), tmp_path)


def test_readout_of_other_weights_is_refused():
    scorers = load_scorers()
    scorers[0].version = "00000000"
    with pytest.raises(UserError, match="does not fit dino@micro 00000000"):
        load_truth(scorers)
