"""Pairs with several scenes: their images, seeds, keys and captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from artifacts import artifact
from omegaconf import OmegaConf
from PIL import Image
from tiny_scorers import pictures

from lorabench.base import seed_of
from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, MergeSpec, ScorerSpec, TrainerSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.scenes import Prompts, Scene
from lorabench.engine.make import make
from lorabench.engine.store import Store
from lorabench.engine.work import Progress
from lorabench.models.files import ModelFiles
from lorabench.scoring.files import ScorerSet, scorer_set
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row, rows_with_baselines
from lorabench.tasks.run_folder import RunWriter
from lorabench.tasks.scores import Scoring

WORLD = MicroworldSpec("microworld", ["mug_1"], ["ink_1"], None, 2, 2, 2)
[PAIR] = load_pairs(WORLD, Prompts())
SCENES = (
    Scene("a sks mug in the snow in szn style", "a mug in the snow in ink style"),
    Scene("a wet sks mug in szn style", "a wet mug in ink style"),
    Scene("a red sks mug in szn style", "a red mug in ink style"),
)
DRAWN = replace(PAIR, scenes=SCENES)


@pytest.fixture
def plan(tmp_path: Path, lora_spec: LoRASpec, generate_spec: GenerateSpec) -> Plan:
    direct = Row.of("direct")
    return Plan(
        store=Store(tmp_path), pairs=[PAIR], rows=rows_with_baselines(direct, WORLD, [PAIR]), dataset=WORLD,
        model=ModelFiles(tmp_path / "model", tmp_path / "model"), model_name="micro", scorers=ScorerSet((), None),
        weights="w", scorers_digest="s", lora=lora_spec, generation=generate_spec, merging=MergeSpec(1),
        trainer=TrainerSpec("cpu", "32-true", 2, 1), seed=3,
    )  # fmt: skip


def test_pair_without_scenes_is_drawn_as_its_prompt_says(plan: Plan) -> None:
    assert PAIR.drawn == (
        Scene(
            "a sks mug in szn style", "a mug in ink style", "a sks mug", "a mug in szn style", "a mug",
            content="sks mug", style="szn style",
        ),
    )  # fmt: skip
    assert plan.seeds(PAIR) == [seed_of("image", "mug_1", "ink_1", PAIR.prompt, index, 3) for index in range(2)]
    assert "scenes" not in plan.sample(plan.rows[-1], PAIR).params


def test_every_scene_is_drawn_as_often_from_noise_of_its_own(plan: Plan) -> None:
    seeds = plan.seeds(DRAWN)
    assert len(set(seeds)) == 3 * 2
    assert [scene.prompt for scene in DRAWN.shots(2)] == [scene.prompt for scene in SCENES for _ in range(2)]
    assert plan.seeds(replace(PAIR, scenes=SCENES[1:])) == seeds[2:]  # another scene before it changes nothing
    assert plan.sample(plan.rows[-1], DRAWN).steps == 6


def test_scenes_change_images_and_scores_and_no_merge(plan: Plan) -> None:
    row = plan.rows[-1]
    assert plan.merge(row, PAIR).key == plan.merge(row, DRAWN).key
    retold = replace(PAIR, scenes=tuple(scene._replace(text=scene.text + "!") for scene in SCENES))
    for build in (plan.sample, plan.score):
        assert len({build(row, pair).key for pair in (PAIR, DRAWN, retold, replace(PAIR, scenes=SCENES[:2]))}) == 4


def test_images_are_scored_in_their_order_beyond_hundred(tmp_path: Path, scorers: Path, plan: Plan) -> None:
    """ "100.png" is sorted before "11.png"."""
    scenes = (Scene(f"a sks mug {number} in szn style", f"a mug {number} in ink style") for number in range(51))
    pair = replace(PAIR, scenes=tuple(scenes))
    files = scorer_set(ScorerSpec("tiny", str(scorers), [], {}))

    def draw(folder: Path, progress: Progress) -> None:
        for index, picture in enumerate(pictures(102)):
            Image.fromarray(picture).save(folder / f"{index:02d}.png")

    drawn = artifact("generate", {}, draw)
    trainer = replace(plan.trainer, workers=0)
    scoring = Scoring(plan.store, files, trainer, "", "", 32)
    scores = scoring.score("row", pair, drawn, range(102))
    make(plan.store, trainer, [scores])
    rows = pd.read_parquet(plan.store.path(scores) / "scores.parquet").query("metric == 'clip_t/prompt'")
    assert rows["prompt"].tolist() == [f"a sks mug {index // 2} in szn style" for index in range(102)]
    assert rows["reference"].equals(rows["prompt"]) and rows["seed"].tolist() == list(range(102))


def test_config_tells_one_report_from_another(plan: Plan, tmp_path: Path) -> None:
    configs = [OmegaConf.to_yaml({"protocol": {"name": name, "arxiv": None, "columns": []}}) for name in ("all", "b")]
    one, other = (RunWriter(tmp_path, plan, config).protocol for config in configs)
    assert one["name"] == "all" and one != other and RunWriter(tmp_path, plan, "a: b").protocol == {}
