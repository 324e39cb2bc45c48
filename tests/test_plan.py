"""What a run consists of, and what its keys depend on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lorabench import method as methods
from lorabench.config import GenerateSpec, LoRASpec, MicroworldSpec, TrainerSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import Prompts
from lorabench.plan import STAGES, Plan, Row, frame_rows
from lorabench.store import Store

WORLD = MicroworldSpec("microworld", ["mug_1", "cat_1"], ["ink_1", "neon_1"], 2, 2, 2)


def chosen(method: str, ablation: str = "none") -> Row:
    return Row(method, ablation, asdict(methods.load(method, ablation)))


@pytest.fixture
def plan(tmp_path: Path, lora_spec: LoRASpec, generate_spec: GenerateSpec) -> Plan:
    return Plan(
        store=Store(tmp_path), pairs=load_pairs(WORLD, Prompts()), rows=frame_rows(chosen("duolora"), WORLD),
        dataset=WORLD, model=tmp_path / "model", model_name="micro", scorers=tmp_path / "scorers", weights="w",
        scorers_digest="s", lora=lora_spec, generation=generate_spec,
        trainer=TrainerSpec("cpu", "32-true", 2, 1), seed=0,
    )  # fmt: skip


def keys(plan: Plan) -> dict[str, set[str]]:
    return {stage: {item.key for item in plan.items(stage)} for stage in STAGES}


def test_subjects_and_styles_cost_a_sum_and_not_a_product(plan: Plan) -> None:
    assert {stage: len(plan.items(stage)) for stage in STAGES} == {
        "personalise": 2 + 2, "merge": 4, "generate": 5 * 4, "score": 5 * 4,
    }  # fmt: skip


def test_another_method_shares_the_loras_and_the_frame_rows(plan: Plan) -> None:
    one, other = keys(plan), keys(replace(plan, rows=frame_rows(chosen("ziplora"), WORLD)))
    assert one["personalise"] == other["personalise"]
    assert not one["merge"] & other["merge"]
    assert len(one["generate"] & other["generate"]) == len(one["score"] & other["score"]) == 4 * 4


def test_an_ablation_changes_the_merge_and_the_papers_numbers_do_not(plan: Plan) -> None:
    ablated = keys(replace(plan, rows=frame_rows(chosen("duolora", "no_cycle"), WORLD)))
    assert not keys(plan)["merge"] & ablated["merge"]
    row = chosen("duolora")
    unread = Row("duolora", "none", {**(row.settings or {}), "paper": []})
    assert keys(replace(plan, rows=frame_rows(unread, WORLD))) == keys(plan)


def test_what_the_key_depends_on(plan: Plan) -> None:
    trainer = TrainerSpec("auto", "32-true", 7, 3)
    elsewhere = replace(plan, trainer=trainer, model=Path("/elsewhere"), store=Store(Path("/other")))
    assert elsewhere.key() == plan.key()
    changes = [
        replace(plan, seed=1),
        replace(plan, weights="other"),
        replace(plan, scorers_digest="other"),
        replace(plan, lora=replace(plan.lora, lr=0.5)),
        replace(plan, generation=replace(plan.generation, guidance=1.0)),
        replace(plan, trainer=replace(plan.trainer, precision="bf16-mixed")),
        replace(plan, pairs=load_pairs(WORLD, Prompts(content_token="xyz"))),
        replace(plan, pairs=plan.pairs[:2]),
    ]
    assert len({plan.key(), *(changed.key() for changed in changes)}) == len(changes) + 1


def test_other_scorers_draw_nothing_anew(plan: Plan) -> None:
    one, other = keys(plan), keys(replace(plan, scorers_digest="other"))
    assert one["generate"] == other["generate"]
    assert not one["score"] & other["score"]


def test_every_method_starts_from_the_same_noise(plan: Plan) -> None:
    seeds = [plan.seeds(pair) for pair in plan.pairs]
    assert len({seed for row in seeds for seed in row}) == 4 * plan.generation.images
    more = replace(plan, generation=replace(plan.generation, images=5), pairs=plan.pairs[::-1])
    assert more.seeds(plan.pairs[0])[:2] == seeds[0]


def test_a_frame_row_that_is_the_chosen_method_stands_once(plan: Plan) -> None:
    rows = [row.name for row in frame_rows(chosen("base"), WORLD)]
    assert rows == ["content_only", "style_only", "oracle", "base"]
    assert not replace(plan, rows=frame_rows(chosen("base"), WORLD)).items("merge")
