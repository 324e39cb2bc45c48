"""task=tuning: the published list of ranges, the choice on development pairs, and both tables."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose

from lorabench.base import CONF, EXPERIMENTS
from lorabench.data import microworld as mw
from lorabench.engine.failures import Incomplete
from lorabench.merging.method import load
from lorabench.merging.methods.slerp import Slerp
from lorabench.merging.methods.ziprank import ZipRank
from lorabench.personalization.schemes.para import INITS
from lorabench.report.tuning import chosen_settings, development_scores
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.settings_grid import grid, settings_of
from lorabench.tasks.tuning import Configuration, by_steps, configurations, development_plan, run

RANGES = yaml.safe_load((CONF / "task" / "tuning.yaml").read_text())["ranges"]
WITHOUT = {"direct", "dreambooth_joint", "lora_rar"}  # no setting but routing, several concepts, or a trained network
FEWER = {"para": len(INITS)}  # all values of the only setting

EXPERIMENT = ["experiments=tuning"]
SMALL = [
    "task=tuning", "trainer.workers=0", "task.methods=[slerp,ziprank]", "task.ranges.slerp='t=0.3,0.5'",
    "task.ranges.ziprank='fit.lr=0.01,0.1 fit.steps=2'", "task.pairs=1", "task.steps=[0.5]",
    "dataset.pairs=[mug_1/ink_1,cat_1/neon_1]", "lora.steps=1", "dataset.references=1", "dataset.content_images=1",
    "dataset.style_images=1", "generate.images=1", "generate.steps=2",
    "scorers.path=micro",
]  # fmt: skip


def test_ranges_cover_every_method_of_the_table_that_has_settings() -> None:
    methods = set(yaml.safe_load((EXPERIMENTS / "all_methods.yaml").read_text())["task"]["rows"])
    assert methods - WITHOUT == set(RANGES) - {"custom_weights"}
    assert load("custom_weights").settings.items() >= {"content": 1.0, "style": 1.0}.items()  # the direct merge


@pytest.mark.parametrize("name", RANGES)
def test_ranges_have_budget_and_published_values_within_bounds(name: str) -> None:
    tried = [Configuration(name, words) for words in grid(name, RANGES[name], "")]
    assert len(tried) == FEWER.get(name, 8)
    made = [each.of.settings for each in tried]  # raises for an unknown setting or a value out of bounds
    assert all(one != other for one, other in product(made, made) if one is not other)
    assert sum(each.is_published for each in tried) == 1
    assert 1 <= len(settings_of(tried[0].words)) <= 3
    trained = yaml.safe_load((CONF / "lora" / "default.yaml").read_text())["rank"]
    ranks = [each.get("rank") or trained for each in made if "rank=" in RANGES[name]]  # null: the rank of the LoRAs
    assert len({str([rank, each.get("weight")]) for rank, each in zip(ranks, made, strict=False)}) == len(ranks)


def test_released_duolora_is_listed_with_the_steps_that_it_makes() -> None:
    counts = {
        steps: method.settings["fit"]["steps"] for steps, method in by_steps(load("duolora"), [0.5], [5, 4]).items()
    }
    assert counts == {50: 50, 100: 100}
    changed = by_steps(load("duolora_released"), [0.5, 2], [5, 4])  # a step per epoch of five images
    assert {steps: method.settings["fit"]["steps"] for steps, method in changed.items()} == {10: 50, 20: 100, 40: 200}
    assert by_steps(load("ties"), [0.5], [5, 4]) == {}


@pytest.mark.usefixtures("hydra")
def test_settings_are_chosen_on_development_names_only() -> None:
    cfg = compose("config", EXPERIMENT)
    development, evaluation = development_plan(cfg), plan_of(cfg, [])
    names = {concept.name for pair in development.pairs for concept in pair.concepts}
    assert len(development.pairs) == 4 and len(names) == 8
    assert not names & {*mw.HELDOUT_SUBJECTS, *mw.HELDOUT_STYLES}
    assert {concept.name for pair in evaluation.pairs for concept in pair.concepts} <= {
        *mw.HELDOUT_SUBJECTS, *mw.HELDOUT_STYLES,
    }  # fmt: skip
    assert len(configurations(cfg.task)) == len(RANGES)


def test_choice_is_greatest_both_then_similarity_then_published() -> None:
    tried = [Configuration("ties", words) for words in ("density=0.2", "density=0.5", "density=0.7", "density=0.9")]

    def chosen(both: list[float], similarity: list[float]) -> str:
        keys = {"dataset": "d", "content": "a", "style": "b", "prompt": "p", "image": 0, "reference": "r",
                "backbone": "x"}  # fmt: skip
        rows = [{**keys, "label": each.label, "seed": seed, "metric": metric, "value": value + shift}
                for each, *values in zip(tried, both, similarity, strict=True)
                for metric, value in zip(("both", "both_similarity"), values, strict=True)
                for seed, shift in ((1, 0.1), (2, -0.1))]  # fmt: skip
        return chosen_settings(development_scores(pd.DataFrame(rows), tried))["ties"]

    assert chosen([0.1, 0.3, 0.2, 0.3], [0.9, 0.5, 0.9, 0.6]) == "density=0.9"
    assert chosen([0.3, 0.3, 0.3, 0.3], [0.5, 0.5, 0.5, 0.5]) == "density=0.2"


@pytest.mark.usefixtures("hydra")
def test_task_writes_both_states_and_resumes(tiny, tmp_path: Path, capsys, monkeypatch) -> None:
    cfg = compose("config", [*tiny, *SMALL, f"output={tmp_path}"])
    run(cfg, tmp_path)
    found = pd.read_csv(tmp_path / "configurations.csv")
    counts = found.groupby("method").agg({"chosen": "sum", "published": "sum", "settings": "size"})
    assert counts.T.to_dict("list") == {"slerp": [1, 1, 2], "ziprank": [1, 0, 2]}
    settings = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    for row in found[found["chosen"]].to_dict("records"):
        assert settings[row["method"]] == settings_of(row["settings"])
    lines = pd.read_csv(tmp_path / "tuning.csv").set_index(["method", "score"])
    assert set(lines.index.get_level_values("method")) == {"slerp", "ziprank"}
    same = lines.loc["slerp"]  # chosen as published: one row for both, and no test between them
    assert set(same["difference"]) == {0} and same["p_holm"].isna().all() and (same["published"] == same["tuned"]).all()
    delta = lines["tuned"] - lines["published"]
    pd.testing.assert_series_equal(delta, lines["difference"], check_names=False, atol=1e-5, rtol=1e-4)
    assert pd.read_csv(tmp_path / "steps.csv")[["method", "steps"]].to_numpy().tolist() == [
        ["ziprank", 1],
        ["ziprank", 2],
    ]
    printed = capsys.readouterr().out
    assert "| method | published | tuned |" in printed and "## Score against steps" in printed

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    run(cfg, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    assert capsys.readouterr().out == printed


@pytest.mark.usefixtures("hydra")
def test_failed_configurations_are_named_and_others_are_compared(tiny, tmp_path: Path, monkeypatch) -> None:
    combine = Slerp.combine

    def failing(self: Slerp, *args):
        if self.t == 0.3:
            raise ZeroDivisionError("a third of the way")
        return combine(self, *args)

    monkeypatch.setattr(Slerp, "combine", failing)
    monkeypatch.setattr(ZipRank, "loss", lambda *_: 1 / 0)
    with pytest.raises(Incomplete, match="3 configurations failed"):
        run(compose("config", [*tiny, *SMALL, f"output={tmp_path}"]), tmp_path)
    found = pd.read_csv(tmp_path / "configurations.csv")
    assert found[["method", "settings"]].to_numpy().tolist() == [["slerp", "t=0.5"]]
    assert set(pd.read_csv(tmp_path / "tuning.csv")["method"]) == {"slerp"}
    text = (tmp_path / "tuning.md").read_text()
    assert re.search(r"- slerp t=0.3: merge of \S+: ZeroDivisionError: a third of the way \(failed/\w+.txt\)", text)
    assert text.count("ZeroDivisionError: division by zero") == 2 and any((tmp_path / "failed").iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.configurations=1", "has 2 configurations, and the budget"),
        ("", "there is no both; use scorers=micro"),  # with the tiny scorers
        ("task.methods=[direct]", "task.methods=direct is unknown"),
        ("task.ranges.slerp='t=2'", "method.t=2"),
        ("task.ranges.slerp='t=0.3,'", "task.ranges.slerp='t=0.3,':"),
        ("dataset.pairs=[mug_dev1/ink_1,cat_1/neon_1]", "mug_dev1 is a development name"),
    ],
)
def test_mistakes_are_one_line(refused, tiny, override: str, words: str) -> None:
    refused(run, [*SMALL, override or tiny[1]], words)
