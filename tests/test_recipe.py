"""task=recipe: LoRAs by themselves, the scores that recipes are chosen by, and the choice."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose

from lorabench.data import microworld as mw
from lorabench.report import stats
from lorabench.report.recipe import best, recipe_lines, with_asked, write_recipes
from lorabench.tasks.recipe import CONFIGURED, plans_of, run

SMALL = [
    "task=recipe", "trainer.workers=0", "scorers.path=micro", "task.ranges=['lr=0.1','rank=1 alpha=1']",
    "task.shown=['content subject_r1','style truth/style']", "dataset.subjects=development",
    "dataset.styles=development", "dataset.pairs=matched", "dataset.count=2", "lora.steps=1", "dataset.references=1",
    "dataset.content_images=1", "dataset.style_images=1", "generate.images=1", "generate.steps=2",
    "uses=[joint,content,style]", "prompts.contexts=[on the beach,at night]",
]  # fmt: skip


def made_scores(values: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Return scores of two images by recipe: for each of the four metrics a list of two values."""
    metrics = [("content", "subject_r1"), ("content", "ground_acc"), ("style", "style_r1"), ("style", "class_acc")]
    return pd.DataFrame(
        {"label": label, "use": use, "metric": metric, "value": value, "dataset": "d", "content": f"a{image}",
         "style": "b", "prompt": "p", "seed": image, "image": image, "reference": "r", "role": use, "backbone": "x",
         "version": "1"}
        for label, lists in values.items()
        for (use, metric), pair in zip(metrics, lists, strict=True)
        for image, value in enumerate(pair)
    )  # fmt: skip


def test_image_is_as_asked_if_both_are_right():
    scores = with_asked(
        made_scores({"first": [[1, 1], [1, 0], [0, 1], [1, 1]], "second": [[1, 1], [1, 1], [1, 1], [1, 0]]})
    )
    lines = recipe_lines(scores, ["content subject_r1"]).set_index(["recipe", "score"])
    assert lines.loc["first", "mean"].to_dict() == {
        "content as asked": 0.5, "style as asked": 0.5, "content subject_r1": 1.0,
    }  # fmt: skip
    assert lines.loc[("second", "content as asked"), ["mean", "difference"]].tolist() == [1.0, 0.5]
    assert lines.loc[("second", "style as asked"), ["mean", "difference"]].tolist() == [0.5, 0.0]


def test_names_are_independent_although_prompts_share_the_other_one():
    scores = made_scores({"first": [[1, 0], [1, 1], [1, 1], [1, 0]]})
    scores = pd.concat([scores.assign(content=scores["content"] + f"{k}") for k in range(8)])
    line = recipe_lines(with_asked(scores), []).set_index("score").loc["content as asked"]
    expected = stats.interval([1.0, 0.0] * 8)
    assert (line["low"], line["high"]) == (expected.low, expected.high)
    halves = scores.assign(style=scores["content"].str[-1].astype(int) // 2)  # each style stands in four prompts
    shared = recipe_lines(with_asked(halves), []).set_index("score").loc["content as asked"]
    assert (shared["low"], shared["high"]) == (line["low"], line["high"])
    text = write_recipes(recipe_lines(with_asked(scores), []), {"first": {"images": 8, "seconds": 1}}, "16 subjects")
    assert f"| `first` | 0.500 [{line['low']:.2f}, {line['high']:.2f}] |" in text and "with 95 % intervals" in text


def test_copying_is_similarity_to_nearest_training_image():
    scores = made_scores({"first": [[1.0, 1.0]] * 4})
    copies = scores.query("use == 'content' and metric == 'subject_r1'").assign(metric="copy/content", role="content")
    near = [copies.assign(reference=name, value=value) for name, value in (("a", 0.2), ("b", 0.9), ("c", 0.4))]
    lines = recipe_lines(with_asked(pd.concat([scores, *near])), ["content copy/content"])
    assert lines.set_index("score").loc["content copy/content", "mean"] == pytest.approx(0.9)


def test_best_recipe_has_greatest_mean_and_first_wins_ties():
    sure, half, none = [[1.0, 1.0]] * 2, [[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]

    def chosen(values: dict[str, list[list[float]]]) -> str:
        return best(recipe_lines(with_asked(made_scores(values)), []))

    assert chosen({"a": [*half, *half], "b": [*sure, *half], "c": [*none, *sure]}) == "b"
    assert chosen({"a": [*half, *half], "b": [*sure, *none], "c": [*half, *half]}) == "a"


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize(
    ("name", "subjects", "styles"),
    [
        ("recipe", mw.DEVELOPMENT_SUBJECTS, mw.DEVELOPMENT_STYLES),
        ("single_loras", mw.HELDOUT_SUBJECTS, mw.HELDOUT_STYLES),
    ],
)
def test_search_uses_development_names_and_check_all_held_out_ones(name, subjects, styles):
    plans = plans_of(compose("config", [f"experiments={name}"]))
    drawn = {role: [pair.names[role] for pair in plan.pairs] for role, plan in plans.items()}
    assert set(drawn["content"]) <= set(subjects) and set(drawn["style"]) <= set(styles)
    assert all(len(names) == len(set(names)) for names in drawn.values())
    if name == "single_loras":
        assert (len(drawn["content"]), len(drawn["style"])) == (48, 38)
        assert {pair.contents[0].word for pair in plans["style"].pairs} == set(mw.CLASSES)
    counts = {role: {len(plan.seeds(p)) for _, p, _ in plan.samples()} for role, plan in plans.items()}
    assert counts == {"content": {2}, "style": {12}}  # of each scene


@pytest.mark.usefixtures("hydra")
def test_task_scores_each_recipe_and_resumes(tiny, tmp_path: Path, capsys) -> None:
    cfg = compose("config", [*tiny, *SMALL, f"output={tmp_path}"])
    run(cfg, tmp_path)
    lines = pd.read_csv(tmp_path / "recipe.csv")
    assert list(dict.fromkeys(lines["recipe"])) == [CONFIGURED, "lr=0.1", "rank=1 alpha=1"]
    scores = ["content as asked", "style as asked", "content subject_r1", "style truth/style"]
    assert list(dict.fromkeys(lines["score"])) == scores
    assert lines["mean"].between(0, 1).all()
    chosen = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    assert chosen in ({}, {"lr": 0.1}, {"rank": 1, "alpha": 1})
    trained = {path.parent for path in (tmp_path / "store").rglob("lora.safetensors")}
    assert len(trained) == 3 * 4  # each recipe: two subjects and two styles
    printed = capsys.readouterr().out
    assert "| recipe | content as asked |" in printed and "2 subjects and 2 styles" in printed

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.parquet")}
    run(cfg, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.parquet")}
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.ranges=['rate=1']", "task.ranges[0]: lora.rate is unknown; use one of rank, "),
        ("task.ranges=['rank=0']", "lora.rank=0 must be at least 1"),
        ("task.ranges=['lr=1','lr=0.3,']", "task.ranges[1]='lr=0.3,':"),
        ("dataset.pairs=[mug_1+cat_1/ink_1]", "task=recipe"),
    ],
)
def test_mistakes_are_one_line(refused, override: str, words: str) -> None:
    refused(run, [*SMALL, override], words)
