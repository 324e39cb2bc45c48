"""Factors read from images: distances equal the world's for right readings; the reader's training and its errors."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch

from lorabench.data import microworld as mw
from lorabench.scoring import factors
from lorabench.scoring.description import FACTORS, ScorerFiles
from lorabench.scoring.factor_network import build_factors
from lorabench.scoring.files import MICRO_SCORERS, TRUTH
from lorabench.scoring.load import load_scorer
from lorabench.scoring.recognition import names_of
from lorabench.scoring.truth import Readout, Truth
from pretraining import factor_examples as examples
from pretraining import factors as training
from pretraining.evaluate_factors import figures_of, ideal, shares
from pretraining.evaluate_scorers import PHOTO, Views

NAMES = mw.HELDOUT_SUBJECTS[::5], mw.HELDOUT_STYLES[::4]


def read_right(things: Sequence[examples.Thing], deviation: float = 0.1) -> dict[str, torch.Tensor]:
    """Return the output of a reader without errors."""
    wanted = examples.targets(things)
    found = {}
    for name, target in wanted.items():
        if name in factors.LABELS:
            found[name] = torch.nn.functional.one_hot(target.clamp_min(0), len(factors.LABELS[name])).float()
        else:
            found[name], found[f"{name} deviation"] = target, torch.full_like(target, deviation)
    return found


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


def test_rows_are_probabilities_means_and_deviations():
    rows = torch.randn(3, factors.WIDTH, generator=torch.Generator().manual_seed(0))
    parts, read = factors.split(rows), factors.read(rows)
    assert sum(part.shape[1] for part in parts.values()) == factors.WIDTH
    for name in factors.LABELS:
        assert torch.allclose(read[name], parts[name].softmax(1))
    for name, width in factors.NUMBERS.items():
        assert torch.equal(read[name], parts[name][:, :width])
        expected = parts[name][:, width:].exp().sqrt().clamp(factors.LEAST_DEVIATION, 1)
        assert torch.allclose(read[f"{name} deviation"], expected)


def test_likelihood_is_that_of_labels_and_normal_numbers():
    subject, other = mw.subject("mug_1"), mw.subject("mug_2")
    read = read_right([(subject, mw.style("ink_1"), mw.Pose())], deviation=0.2)
    read["class"], read["mark"] = torch.full((1, 12), 1 / 12), torch.full((1, 6), 1 / 6)
    shown, asked = factors.subject_values(subject), factors.subject_values(other)
    normal = [
        math.log(NormalDist(mean, 0.2).pdf(x))
        for name in shown
        for mean, x in zip(shown[name], asked[name], strict=True)
    ]
    constant = len(normal) * math.log(2 * math.pi) / 2
    expected = math.log(1 / 12) + math.log(1 / 6) + sum(normal) + constant
    assert factors.likelihood(read, other).item() == pytest.approx(expected, abs=1e-3)


def rows_of(found: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the outputs of a network that reads `found`."""
    parts = []
    for name in factors.OUTPUTS:
        if name in factors.LABELS:
            parts.append(found[name].clamp_min(1e-9).log())
        else:
            parts += [found[name], 2 * found[f"{name} deviation"].log()]
    return torch.cat(parts, dim=1)


def truth_of(seed: int = 0) -> tuple[Truth, torch.Tensor, torch.Tensor]:
    """Return a readout with random prototypes, and the prototypes of the subjects and styles."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(len(names), 32, generator=generator) for names in (mw.HELDOUT_SUBJECTS, mw.HELDOUT_STYLES)]
    none = torch.zeros(1, 32)
    content = Readout(["mug"], none, none, mw.HELDOUT_SUBJECTS, made[0])
    return Truth(content, Readout(["ink"], none, none, mw.HELDOUT_STYLES, made[1]), "t"), made[0], made[1]


def recognized(found: dict[str, torch.Tensor], content: torch.Tensor, style: torch.Tensor) -> dict[str, list[str]]:
    rows = {"dino@micro": {"content": content}, "csd@micro": {"style": style}}
    return names_of(rows_of(found), rows, truth_of()[0])


def test_what_is_read_right_is_recognized_whatever_scorers_see():
    styles = [mw.HELDOUT_STYLES[i % 38] for i in range(48)]
    things = [(mw.subject(n), mw.style(s), mw.Pose()) for n, s in zip(mw.HELDOUT_SUBJECTS, styles, strict=True)]
    names = recognized(read_right(things, 0.03), torch.ones(48, 32), torch.ones(48, 32))
    assert names["subject"] == mw.HELDOUT_SUBJECTS and names["style"] == styles
    assert names["class"] == [mw.kind_of(name) for name in mw.HELDOUT_SUBJECTS]
    assert names["family"] == [mw.kind_of(name) for name in styles]


def test_scorers_decide_if_nothing_is_read():
    _, subjects, styles = truth_of()
    found = read_right([(mw.subject("mug_1"), mw.style("ink_1"), mw.Pose())], deviation=1.0)
    found = {name: value if "deviation" in name else torch.full_like(value, 0.5) for name, value in found.items()}
    for i in (5, 20):
        names = recognized(found, subjects[i : i + 1], styles[i : i + 1])
        assert (names["subject"], names["style"]) == ([mw.HELDOUT_SUBJECTS[i]], [mw.HELDOUT_STYLES[i]])


def test_witnesses_are_weighed_as_independent():
    """The sum of log likelihood and cosine / 0.07 decides, as computed by hand for each subject."""
    _, subjects, _ = truth_of()
    generator = torch.Generator().manual_seed(4)
    things = [(mw.subject(name), mw.style("ink_1"), mw.Pose()) for name in ("mug_1", "cat_3", "house_2")]
    found = read_right(things, deviation=0.3)
    unit = torch.randn(3, 32, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(unit[:, None], subjects[None], dim=2)
    total = factors.likelihoods(found, mw.HELDOUT_SUBJECTS) + cosine / 0.07
    expected = [mw.HELDOUT_SUBJECTS[i] for i in total.argmax(1)]
    assert recognized(found, unit, torch.ones(3, 32))["subject"] == expected


def test_numbers_that_are_not_trusted_do_not_decide():
    """The body's color is read wrong, as that of another subject of the class; only the trusted shape is right."""
    subject, other = mw.subject("mug_1"), mw.subject("mug_2")
    swapped = replace(subject, body=other.body, accent=other.accent, mark=other.mark, mark_color=other.mark_color)
    read = read_right([(swapped, mw.style("ink_1"), mw.Pose())])

    def most_likely() -> str:
        return mw.HELDOUT_SUBJECTS[int(factors.likelihoods(read, mw.HELDOUT_SUBJECTS).argmax())]

    assert most_likely() == "mug_2"
    for name in ("body", "accent", "mark_color"):
        read[f"{name} deviation"] += 0.9
    read["mark"] = torch.full((1, 6), 1 / 6)
    assert most_likely() == "mug_1"


def test_examples_are_never_named_ones():
    for number in range(0, (examples.OF_BANK + examples.DRAWN) * examples.BLOCK, 307):
        subject, style, _ = examples.example(number)
        names = mw.HELDOUT_SUBJECTS + mw.DEVELOPMENT_SUBJECTS
        assert min(mw.content_distance(subject, mw.subject(n)) for n in names) > 0.06
        if style:
            names = mw.HELDOUT_STYLES + mw.DEVELOPMENT_STYLES
            assert min(mw.style_distance(style, mw.style(n)) for n in names) > 0.06
    first = examples.OF_BANK * examples.BLOCK
    styles = [examples.example(first + n)[1] for n in range(len(examples.KINDS))]
    assert {style and style.family for style in styles} == set(mw.FAMILIES)


def test_targets_leave_out_what_image_does_not_show():
    subject = mw.subject("mug_1")
    photo, drawing = (subject, None, mw.Pose(scene="snow")), (subject, mw.style("ink_1"), mw.Pose())
    wanted = examples.targets([photo, drawing])
    assert wanted["scene"].tolist() == [mw.SCENES.index("snow"), -1]
    assert wanted["family"].tolist() == [len(mw.FAMILIES), mw.FAMILIES.index("ink")]
    assert wanted["hue"][0].isnan().all() and not wanted["hue"][1].isnan().any()
    angle = 2 * math.pi * mw.style("ink_1").hue
    assert wanted["hue"][1].tolist() == pytest.approx([math.cos(angle), math.sin(angle)])


def test_loss_is_least_for_right_reading_and_true_deviation():
    things = [examples.example(i) for i in range(12)]
    wanted = examples.targets(things)

    def outputs(error: float, deviation: float) -> dict[str, torch.Tensor]:
        right = read_right(things)
        spread = 2 * math.log(deviation)
        return {
            name: 20 * right[name] * (1 - 2 * error)
            if name in factors.LABELS
            else torch.cat([right[name].nan_to_num() + error, torch.full_like(right[name], spread)], dim=1)
            for name in factors.OUTPUTS
        }

    best = training.loss(outputs(0.0, 0.1), wanted).item()
    assert best < training.loss(outputs(0.3, 0.1), wanted).item() < training.loss(outputs(0.9, 0.1), wanted).item()
    true = training.loss(outputs(0.3, 0.3), wanted).item()
    assert true < training.loss(outputs(0.3, 0.1), wanted).item()
    assert true < training.loss(outputs(0.3, 0.9), wanted).item()


def test_training_reads_more_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "BATCH", 16)
    monkeypatch.setattr(training, "WARMUP", 4)
    monkeypatch.setattr(training, "ARCHITECTURE", {"stem": 4, "widths": [8, 8, 8], "hidden": 16})
    things = [examples.example(i) for i in range(64)]
    pictures, wanted = [np.stack([mw.render(*thing) for thing in things])], examples.targets(things)
    lines: list[str] = []
    whole = training.train(pictures, wanted, tmp_path / "whole.pt", 3, lines.append)
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]

    def stop(line: str) -> None:
        if "epoch 2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(pictures, wanted, tmp_path / "parts.pt", 3, stop)
    resumed: list[str] = []
    again = training.train(pictures, wanted, tmp_path / "parts.pt", 3, resumed.append)
    assert [line.split(",")[0] for line in resumed] == ["factors: epoch 2 of 3", "factors: epoch 3 of 3"]
    assert losses[1:] == pytest.approx([float(line.rsplit(" ", 1)[1]) for line in resumed], abs=2e-3)
    pixels = torch.zeros(1, 3, 64, 64)
    assert torch.allclose(whole(pixels), again(pixels), atol=2e-2)


def test_figures_of_right_reading_are_perfect():
    rng = np.random.default_rng(0)
    subjects, styles = mw.HELDOUT_SUBJECTS[:8] * 3, [*mw.HELDOUT_STYLES[:8], *mw.HELDOUT_STYLES[10:18], *[PHOTO] * 8]
    poses = [mw.sample_pose(rng) for _ in subjects]
    views = Views(np.zeros((24, 1)), subjects, styles, poses)
    things = [
        (mw.subject(subject), None if style == PHOTO else mw.style(style), pose)
        for subject, style, pose in zip(subjects, styles, poses, strict=True)
    ]
    found = figures_of(read_right(things), views)
    assert list(found["spearman"].values()) == pytest.approx([1.0] * len(found["spearman"]))
    colorless = figures_of(ideal(views), views)["spearman"]
    assert (
        colorless["content"]
        < 1
        == pytest.approx(colorless["content in own colors"])
        == pytest.approx(colorless["style"])
    )
    assert set(shares({"subject": subjects, "style": styles}, views).values()) == {1.0}
    swapped = {"subject": subjects, "style": styles[::-1]}
    assert (
        shares(swapped, views)["both"]
        == shares(swapped, views)["style"]
        < 1.0
        == shares(swapped, views)["subject, drawings"]
    )
    assert found["drawings"]["class"] == found["photographs"]["scene"] == 1.0
    assert found["drawings"]["hue"] == pytest.approx(0, abs=1e-6) and "scene" not in found["drawings"]


@pytest.fixture(scope="module")
def reader():
    return load_scorer(ScorerFiles.of(MICRO_SCORERS / TRUTH / FACTORS))


def test_shipped_reader_is_small_and_fits_description(reader):
    files = ScorerFiles.of(MICRO_SCORERS / TRUTH / FACTORS)
    assert files.weights.stat().st_size < 3_000_000
    assert isinstance(reader.network, type(build_factors(training.ARCHITECTURE)))


def test_known_damage_lowers_truth(reader):
    """Of each kind of damage, the mean distance to the right subject or style grows with the dose."""
    rng = np.random.default_rng(3)
    subjects, styles = mw.HELDOUT_SUBJECTS[::4], [f"{family}_1" for family in mw.FAMILIES[::2]]
    pairs = [(s, styles[i % len(styles)]) for i, s in enumerate(subjects)]

    def mean(change) -> tuple[float, float]:
        things = ((*change(mw.subject(s), mw.style(t)), mw.sample_pose(rng)) for s, t in pairs)
        images = np.stack([mw.render(subject, style, pose) for subject, style, pose in things])
        read = factors.read(reader.embed(images)[FACTORS])
        content = [factors.content_distances(read, mw.subject(s))[i].item() for i, (s, _) in enumerate(pairs)]
        style = [factors.style_distances(read, mw.style(t))[i].item() for i, (_, t) in enumerate(pairs)]
        return float(np.mean(content)), float(np.mean(style))

    right = mean(lambda s, t: (s, t))
    shape = [
        mean(lambda s, t, d=dose: (replace(s, shape=tuple(x + d * (1 - 2 * (x > 0.5)) for x in s.shape)), t))
        for dose in (0.25, 0.5)
    ]
    other = mean(lambda s, t: (replace(mw.subject("fish_2" if s.cls != "fish" else "mug_2")), t))
    assert right[0] < shape[0][0] < shape[1][0] < other[0]
    hue = [mean(lambda s, t, d=dose: (s, replace(t, hue=(t.hue + d) % 1))) for dose in (0.15, 0.5)]
    family = mean(lambda s, t: (s, mw.style("clay_2" if t.family != "clay" else "ink_2")))
    assert right[1] < hue[0][1] < hue[1][1] < family[1]
    assert abs(hue[1][0] - right[0]) < 0.05 and abs(shape[1][1] - right[1]) < 0.05, "one role leaves the other"
