"""Costs of methods: every measurement in a new process after a warm-up, medians and ratios."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose

from lorabench.engine.store import Store
from lorabench.engine.workers import Pool
from lorabench.personalization import routing
from lorabench.sampling import generate
from lorabench.tasks import cost
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.cost import run, summary
from lorabench.tasks.rows import Row

SMALL = [
    "task=cost", "task.methods=[direct,ziprank_closed]", "task.repeats=2", "dataset.subjects=[mug_1]",
    "dataset.styles=[ink_1]", "dataset.references=1", "dataset.content_images=1", "dataset.style_images=1",
    "generate.images=2", "lora.steps=1", "generate.steps=3",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("hydra")


def test_each_measurement_is_fresh_and_warmed_up(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    """Count the processes, and run their jobs in this one, which is faster."""
    pools, drawn = [], []

    def pool(count: int, threads: int, environment: dict[str, str]) -> Pool:
        pools.append(count)
        return Pool(0, threads)

    real = generate.generate_by_rule
    monkeypatch.setattr(cost, "Pool", pool)
    monkeypatch.setattr(generate, "generate_by_rule", lambda *args: drawn.append(args[6].steps) or real(*args))
    monkeypatch.setattr(cost, "load_of_machine", lambda: 1.5)
    run(compose("config", [*tiny, *SMALL, f"output={tmp_path}", f"store={tmp_path}/elsewhere"]), tmp_path)
    assert pools == [1] * (2 + 2 * 2)  # LoRAs, then methods by repeats
    assert drawn == [2, 3] * 4  # steps: the warm-up, then the measured ones
    assert not (tmp_path / "elsewhere").exists() and not list(tmp_path.glob("store-*"))
    repeats = pd.read_csv(tmp_path / "repeats.csv")
    assert repeats.groupby("method").size().to_dict() == {"direct": 2, "ziprank_closed": 2}
    assert set(repeats["denoiser_passes_per_image"]) == {3 * 2}  # without the images of the warm-up
    passes = repeats.set_index("method")["merge_denoiser_passes"]
    assert set(passes["direct"]) == {0} and min(passes["ziprank_closed"]) > 0
    text = (tmp_path / "cost.md").read_text()
    assert (
        "| method | s per LoRA (shared) | learned parameters | s to merge | x direct |" in text
        and text in capsys.readouterr().out
    )
    assert "The machine was not idle (load 1.5 before)" in text


def test_warm_up_is_same_with_two_steps(tiny, tmp_path: Path) -> None:
    [row] = cost.rows_of(["duolora"])
    plan = plan_of(compose("config", [*tiny, *SMALL, f"output={tmp_path}"]), [row])
    (tmp_path / "trained").mkdir()
    short = cost.warm(replace(plan, store=Store(tmp_path / "run")), row, ["personalize"], tmp_path)
    assert [item.steps for item in short.artifacts("merge")] == [2] and short.generation.steps == 2
    assert short.artifacts("personalize")[0].key == plan.artifacts("personalize")[0].key
    assert short.store.root != tmp_path / "run"


def test_backbone_has_column_and_encoder_is_part_of_merge(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cost, "Pool", lambda count, threads, environment: Pool(0, threads))
    monkeypatch.setitem(routing.STEPS, "regress", 2)
    small = {"steps": 1, "batch": 1, "contents": 1, "styles": 1}
    monkeypatch.setattr(cost, "rows_of", lambda names: [Row.of(name, backbone=small) for name in names])
    methods = "task.methods=[craft,craft+sampling.acfg_regress]"
    run(compose("config", [*tiny, *SMALL, methods, "task.repeats=1", f"output={tmp_path}"]), tmp_path)
    found = pd.read_csv(tmp_path / "cost.csv").set_index("method")
    plain, learned = found.loc["craft"], found.loc["craft+sampling.acfg_regress"]
    assert plain["backbone_seconds"] == learned["backbone_seconds"] > 0
    assert plain["lora_seconds"] > 0 and learned["merge_seconds"] > plain["merge_seconds"]
    assert "s of the backbone (once per model)" in (tmp_path / "cost.md").read_text()


def test_medians_with_least_and_greatest() -> None:
    found = pd.DataFrame(
        {"method": ["direct"] * 3, "repeat": [0, 1, 2], "merge_seconds": [3.0, 1.0, 1.5], "lora_seconds": [9.0] * 3}
    )
    row = summary(found).loc["direct"]
    assert row[["merge_seconds", "merge_seconds_low", "merge_seconds_high"]].tolist() == [1.5, 1.0, 3.0]
    assert cost.median(row.to_dict(), "merge_seconds", 1) == "1.5 [1, 3]"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.methods=[]", "task.methods is empty; use task.methods="),
        ("task.methods=[direct,duolra]", "method=duolra is unknown"),
        ("task.methods=[direct,direct]", "names direct twice"),
        ("task.repeats=0", "task.repeats=0 must be at least 1; use task.repeats=3"),
    ],
)
def test_mistakes_are_one_line(refused, override: str, words: str) -> None:
    refused(run, [*SMALL, override], words)
