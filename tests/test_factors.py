"""Factors read from images: distances equal the world's for correct readings; training of the readers."""

import json
import math

import numpy as np
import pytest
import torch

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.scoring import factors
from lorabench.scoring.load import load_scorers
from pretraining import factors as training

NAMES = mw.HELDOUT_SUBJECTS[::5], mw.HELDOUT_STYLES[::4]


def read_right(things: list[training.Thing]) -> dict[str, torch.Tensor]:
    """Return the output of a reader without errors."""
    wanted = training.targets(things)
    return {
        name: torch.nn.functional.one_hot(target, {**factors.CONTENT, **factors.STYLE}[name]).float()
        if name in factors.LABELS and name != "scene"
        else target
        for name, target in wanted.items()
    }


def test_distances_are_true_ones_if_all_is_read_right():
    subjects, styles = [mw.subject(n) for n in NAMES[0]], [mw.style(n) for n in NAMES[1]]
    pairs = [(subjects[i % len(subjects)], style, mw.Pose()) for i, style in enumerate(styles)]
    read = read_right(pairs)
    for subject in subjects:
        true = [mw.content_distance(each, subject) for each, _, _ in pairs]
        assert factors.content_distances(read, subject).tolist() == pytest.approx(true, abs=1e-5)
    for style in styles:
        true = [mw.style_distance(each, style) for _, each, _ in pairs]
        assert factors.style_distances(read, style).tolist() == pytest.approx(true, abs=1e-5)


def test_hue_that_is_not_read_counts_as_quarter_turn():
    read = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    assert factors.turn(read, 0.5).tolist() == pytest.approx([0.5, 1.0, 0.75])
    assert factors.turn(read, 1.0).tolist() == pytest.approx([0.5, 0.0, 0.25])


def test_examples_are_never_named_ones():
    for number in range(0, 3 * training.BLOCK, 97):
        subject, style, _ = training.example(number, blocks=2)
        names = mw.HELDOUT_SUBJECTS + mw.DEVELOPMENT_SUBJECTS
        assert min(mw.content_distance(subject, mw.subject(n)) for n in names) > 0.06
        if style:
            names = mw.HELDOUT_STYLES + mw.DEVELOPMENT_STYLES
            assert min(mw.style_distance(style, mw.style(n)) for n in names) > 0.06
    families = {training.example(n, blocks=2)[1].family for n in range(2 * training.BLOCK, 2 * training.BLOCK + 9)}
    assert families == set(mw.UNSEEN_FAMILIES)


def test_targets_leave_out_what_image_does_not_show():
    subject = mw.subject("mug_1")
    photo, drawing = (subject, None, mw.Pose(scene="snow")), (subject, mw.style("ink_1"), mw.Pose())
    wanted = training.targets([photo, drawing])
    assert wanted["scene"].tolist() == [mw.SCENES.index("snow"), -1]
    assert wanted["family"].tolist() == [len(mw.FAMILIES), mw.FAMILIES.index("ink")]
    assert wanted["hue"][0].isnan().all() and not wanted["hue"][1].isnan().any()
    angle = 2 * math.pi * mw.style("ink_1").hue
    assert wanted["hue"][1].tolist() == pytest.approx([math.cos(angle), math.sin(angle)])


def test_loss_of_right_reading_is_below_that_of_wrong_one():
    things = [training.example(i) for i in range(12)]
    wanted = training.targets(things)
    right = {
        name: 20 * value if name in factors.LABELS else value
        for name, value in read_right(things).items()
        if name != "scene"
    }
    wrong = {name: -value if name in factors.LABELS else 1 - value for name, value in right.items()}
    assert training.loss(right, wanted).item() < 1e-3 < training.loss(wrong, wanted).item()


def test_network_learns_what_embeddings_contain():
    """Embeddings are the factors themselves; after training, new ones are read correctly."""
    things = [training.example(i) for i in range(600)]
    wanted = training.targets(things)
    parts = [read_right(things)[name] for name in ("class", "mark", "shape", "body", "accent", "mark_color")]
    inputs = torch.cat(parts, dim=1)
    seen = {name: value[:480] for name, value in wanted.items()}
    network = training.train(inputs[:480], seen, factors.CONTENT, epochs=40)
    with torch.no_grad():
        found = network(inputs[480:])
    assert (found["class"].argmax(1) == wanted["class"][480:]).float().mean() > 0.95
    assert (found["body"] - wanted["body"][480:]).abs().mean() < 0.5 * wanted["body"].std()


def test_written_networks_are_read_back_and_refused_for_other_scorers(tmp_path):
    from safetensors.torch import save_file

    scorers = load_scorers()
    images = np.stack([mw.render(mw.subject("cat_1"), mw.style("neon_1"), mw.Pose())] * 2)
    embeddings = {scorer.name: scorer.embed(images) for scorer in scorers}
    width = factors.join(embeddings).shape[1]
    networks = {"content": factors.CONTENT, "style": factors.STYLE}
    built = {role: factors.FactorNetwork(width, outputs).eval() for role, outputs in networks.items()}
    (tmp_path / "truth").mkdir()
    state = {f"{role}.{name}": v.contiguous() for role, net in built.items() for name, v in net.state_dict().items()}
    save_file(state, tmp_path / "truth" / factors.FILE)
    about = tmp_path / "truth" / "factors.json"
    about.write_text(json.dumps({"made_for": factors.made_for(scorers)}))
    read = factors.load_factors(scorers, tmp_path).read(embeddings)
    with torch.no_grad():
        expected = built["content"](factors.join(embeddings))
    assert torch.allclose(read["shape"], expected["shape"], atol=1e-6)
    assert torch.allclose(read["class"].sum(1), torch.ones(2), atol=1e-6)
    assert factors.labels(read, "class")[0] in mw.CLASSES
    about.write_text(json.dumps({"made_for": {**factors.made_for(scorers), "clip@micro": "0"}}))
    with pytest.raises(UserError, match="does not fit clip@micro"):
        factors.load_factors(scorers, tmp_path)
    about.unlink()
    with pytest.raises(UserError, match="is missing; run"):
        factors.load_factors(scorers, tmp_path)
