"""The artifacts of a run, and the inputs of their keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DreamBoothStyleDropSpec, MicroworldSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, MergeSpec, ScorerSpec, TrainerSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.concepts import ROLES
from lorabench.data.scenes import Prompts
from lorabench.data.uses import USES, Use, pair_for
from lorabench.engine.artifact import batches
from lorabench.engine.store import Store
from lorabench.models.files import ModelFiles, model_folder
from lorabench.models.layer import Layer
from lorabench.scoring.files import ScorerSet, scorer_set
from lorabench.tasks.checks import check_methods
from lorabench.tasks.plan import STAGES, Plan
from lorabench.tasks.rows import BASELINES, Row, rows_with_baselines

WORLD = MicroworldSpec("microworld", ["mug_1", "cat_1"], ["ink_1", "neon_1"], None, 2, 2, 2)
PAIRS = load_pairs(WORLD, Prompts())
MICRO = scorer_set(ScorerSpec("micro", "micro", [], {}))


def chosen(method: str, ablation: str = "none") -> Row:
    return Row.of(method, ablation)


@pytest.fixture
def plan(tmp_path: Path, lora_spec: LoRASpec, generate_spec: GenerateSpec) -> Plan:
    return Plan(
        store=Store(tmp_path), pairs=PAIRS, rows=rows_with_baselines(chosen("duolora"), WORLD, PAIRS),
        dataset=WORLD, model=ModelFiles(tmp_path / "model", tmp_path / "model"), model_name="micro",
        scorers=MICRO, weights="w",
        scorers_digest="s", lora=lora_spec, generation=generate_spec, merging=MergeSpec(1),
        trainer=TrainerSpec("cpu", "32-true", 2, 1), seed=0,
    )  # fmt: skip


def keys(plan: Plan) -> dict[str, set[str]]:
    return {stage: {item.key for item in plan.artifacts(stage)} for stage in STAGES}


def test_subjects_and_styles_cost_sum_and_not_product(plan: Plan) -> None:
    assert {stage: len(plan.artifacts(stage)) for stage in STAGES} == {
        # embeddings: images and references by three backbones, texts and training images by one; factors of images
        "personalize": 2 + 2, "merge": 4, "generate": 5 * 4, "embed": 3 * (5 * 4 + 2 + 2) + 4 + 4 + 5 * 4,
        "score": 5 * 4,
    }  # fmt: skip


def test_another_method_shares_loras_and_baselines(plan: Plan) -> None:
    one, other = keys(plan), keys(replace(plan, rows=rows_with_baselines(chosen("ziplora"), WORLD, PAIRS)))
    assert one["personalize"] == other["personalize"]
    assert not one["merge"] & other["merge"]
    assert len(one["generate"] & other["generate"]) == len(one["score"] & other["score"]) == 4 * 4


def test_method_trains_on_images_of_its_own_choice(plan: Plan) -> None:
    """Both LoRAs adapt the same two blocks."""
    own, shared = (
        keys(replace(plan, rows=[chosen("blora", ablation)]))["personalize"] for ablation in ("none", "all_images")
    )
    assert len(own) == len(shared) == 4 and not own & shared and not shared & keys(plan)["personalize"]


def test_ablation_changes_merge(plan: Plan) -> None:
    ablated = keys(replace(plan, rows=rows_with_baselines(chosen("duolora", "no_cycle"), WORLD, PAIRS)))
    assert not keys(plan)["merge"] & ablated["merge"]


def test_what_key_depends_on(plan: Plan) -> None:
    trainer = TrainerSpec("auto", "32-true", 7, 3, devices=4, nodes=2, rendezvous="a:1")
    elsewhere = replace(
        plan, trainer=trainer, model=ModelFiles(Path("/elsewhere"), Path("/elsewhere")), store=Store(Path("/other"))
    )
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


def test_scoring_batch_is_in_key_of_scores_alone(plan: Plan) -> None:
    one, other = keys(plan), keys(replace(plan, scoring_batch=8))
    assert not one.pop("score") & other.pop("score")
    assert len(one["embed"] & other["embed"]) == 3 * (2 + 2) + 4 + 4  # references, texts and training images
    assert not replace(plan, scorers=ScorerSet(())).artifacts("embed")
    del one["embed"], other["embed"]
    assert one == other


def test_another_backbone_embeds_only_with_itself(plan: Plan) -> None:
    fewer = replace(plan, scorers=ScorerSet(MICRO.scorers[:2], MICRO.truth))
    new = keys(plan)["embed"] - keys(fewer)["embed"]
    names = [each.name for each in plan.artifacts("embed") if each.key in new]
    assert len(names) == 5 * 4 + 2 + 2 and all(name.startswith("csd@micro ") for name in names)
    assert keys(fewer)["embed"] < keys(plan)["embed"] and keys(fewer)["generate"] == keys(plan)["generate"]


def test_images_go_through_all_backbones_in_one_batch(plan: Plan) -> None:
    groups = batches(plan.artifacts("embed"))
    images = [group for group in groups if any("images" in each.inputs for each in group)]
    assert len(images) == 5 * 4 and all(len(group) == 3 + 1 for group in images)  # and the reader of factors


def test_every_method_starts_from_same_noise(plan: Plan) -> None:
    seeds = [plan.seeds(pair) for pair in plan.pairs]
    assert len({seed for row in seeds for seed in row}) == 4 * plan.generation.images
    more = replace(plan, generation=replace(plan.generation, images=5), pairs=plan.pairs[::-1])
    assert more.seeds(plan.pairs[0])[:2] == seeds[0]


def test_frame_row_that_is_chosen_method_stands_once(plan: Plan) -> None:
    rows = [row.name for row in rows_with_baselines(chosen("base"), WORLD, PAIRS)]
    assert rows == ["content_only", "style_only", "oracle", "base"]
    assert not replace(plan, rows=rows_with_baselines(chosen("base"), WORLD, PAIRS)).artifacts("merge")


def test_method_that_wants_its_own_lora_trains_that_one_besides(plan: Plan) -> None:
    row = chosen("duolora", "short_content_lora")
    short = replace(plan, rows=rows_with_baselines(row, WORLD, PAIRS), lora=replace(plan.lora, steps=30))
    assert [item.steps for item in short.artifacts("personalize")] == [30, 3, 30, 3, 30, 30]


def test_several_subjects_have_no_oracle_and_kind_of_merge_is_in_key(plan: Plan) -> None:
    spec = replace(WORLD, contents=["mug_1", "cat_1"])
    pairs = load_pairs(spec, Prompts())
    rows = rows_with_baselines(chosen("duolora"), spec, pairs)
    assert [row.name for row in rows] == ["base", "content_only", "style_only", "duolora"]
    joint = replace(plan, pairs=pairs, rows=rows)
    uniform = replace(joint, rows=rows_with_baselines(chosen("duolora", "uniform"), spec, pairs))
    assert not keys(joint)["merge"] & keys(uniform)["merge"]
    assert [item.steps for item in uniform.artifacts("merge")] == [200, 200]
    one_pair = rows_with_baselines(chosen("duolora", "uniform"), WORLD, PAIRS)
    assert keys(replace(plan, rows=one_pair)) == keys(plan)


def test_method_is_shown_unet_before_any_training(plan: Plan, folder: Path) -> None:
    row = Row.of("duolora", prior={"content": ["nope"], "style": ["mid_block"]})
    with pytest.raises(UserError, match=r"content layers \(nope\) are not"):
        check_methods(replace(plan, rows=[row], model=model_folder(folder)))
    row = Row.of("custom_weights", blocks={"nope": {"style": 0.5}})
    with pytest.raises(UserError, match=r"method\.blocks\.nope must be a module"):
        check_methods(replace(plan, rows=[row], model=model_folder(folder)))
    check_methods(replace(plan, model=model_folder(folder)))


@pytest.mark.parametrize(
    ("method", "roles", "ranks", "blocks"),
    [
        ("direct", ("content", "style"), (2, 2), ("down_blocks", "mid_block", "up_blocks")),
        ("dreambooth_joint", ("content",), (2,), ("down_blocks", "mid_block", "up_blocks")),
        ("blora", ("content", "style"), (2, 2), ("up_blocks.0.attentions.0", "up_blocks.0.attentions.1")),
    ],
)
def test_merge_is_checked_with_ranks_roles_and_blocks_of_its_training(
    plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, roles: tuple, ranks: tuple, blocks: tuple
) -> None:
    seen: list[Layer] = []
    row = chosen(method)
    assert row.method is not None
    monkeypatch.setattr(type(row.method.merge), "check", lambda self, layers: seen.extend(layers.values()))
    check_methods(replace(plan, rows=[row], model=model_folder(folder)))
    assert {(layer.roles, layer.ranks) for layer in seen} == {(roles, ranks)}
    assert {block for block in blocks for layer in seen if layer.name.startswith(block)} == set(blocks)
    assert all(layer.name.startswith(blocks) for layer in seen)


def test_pairs_of_batch_are_one_job(plan: Plan) -> None:
    together = replace(plan, merging=MergeSpec(3))
    merges = together.artifacts("merge")
    assert [len(batch) for batch in batches(merges)] == [3, 1]
    assert [len(batch) for batch in batches(together.artifacts("score"))] == [1] * 20


def test_baseline_images_depend_only_on_loras_that_they_use(plan: Plan) -> None:
    rows = {row.name: row for row in plan.rows}
    used = {name: plan.sample(rows[name], PAIRS[0]).inputs.get("loras", []) for name in BASELINES}
    names = {name: [lora.artifact.name for lora in loras] for name, loras in used.items()}  # pyright: ignore
    assert names == {"base": [], "content_only": ["mug_1"], "style_only": ["ink_1"]}
    assert not replace(plan, rows=[rows["base"]]).artifacts("personalize")


def test_pairs_on_different_backbones_are_no_batch(plan: Plan) -> None:
    rows = [chosen("ziprank"), chosen("ziprank+training.craft")]
    merges = replace(plan, rows=rows, merging=MergeSpec(8)).artifacts("merge")
    found = [{each.work.backbone for each in batch} for batch in batches(merges)]  # type: ignore[union-attr]
    assert [len(each) for each in found] == [1, 1] and found[0] == {None} != found[1]


def test_how_many_pairs_share_batch_is_in_key_where_masks_are_learned(plan: Plan) -> None:
    separate, together = keys(plan), keys(replace(plan, merging=MergeSpec(3)))
    assert separate["personalize"] == together["personalize"] and not separate["merge"] & together["merge"]
    assert "pairs_per_batch" not in plan.artifacts("merge")[0].parts
    summed = replace(plan, rows=rows_with_baselines(chosen("direct"), WORLD, PAIRS))
    assert keys(summed) == keys(replace(summed, merging=MergeSpec(3)))


def test_another_component_is_another_row_and_shares_what_it_can(plan: Plan) -> None:
    """Another sampling keeps LoRAs and merges, another merge keeps LoRAs, and another training keeps nothing."""
    plain = keys(replace(plan, rows=[chosen("duolora")]))
    composite = keys(replace(plan, rows=[chosen("duolora+sampling.composite")]))
    assert plain["personalize"] == composite["personalize"] and plain["merge"] == composite["merge"]
    assert not plain["generate"] & composite["generate"]
    blora, ties = (keys(replace(plan, rows=[chosen(name)])) for name in ("blora", "blora+merge.ties"))
    assert blora["personalize"] == ties["personalize"] and not blora["merge"] & ties["merge"]
    direct, trained = (keys(replace(plan, rows=[chosen(name)])) for name in ("direct", "direct+training.blora"))
    assert not direct["personalize"] & trained["personalize"]


@pytest.mark.parametrize("name", ["direct", "klora", "duolora", "ties", "blora", "style_only"])
def test_uses_agrees_with_scales_of_merge(name: str, folder: Path, plan: Plan) -> None:
    from lorabench.models.shapes import layer_map
    from lorabench.tasks.checks import adapted_layers

    method = chosen(name).own
    layers = adapted_layers(layer_map(model_folder(folder)), method.training.outputs(PAIRS[0], plan.lora))
    for k, role in enumerate(ROLES):
        merge: Any = method.merge
        scales = [merge.scales(layer)[k] for layer in layers.values()] if merge.keeps_parts else [1.0]
        assert merge.uses(role) == any(scales)


def test_version_is_in_key_of_its_stage(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    row = chosen("klora")
    before = keys(replace(plan, rows=[row]))
    monkeypatch.setattr(type(row.own.sampling), "version", 2)
    after = keys(replace(plan, rows=[row]))
    assert before["merge"] == after["merge"] and not before["generate"] & after["generate"]
    monkeypatch.setattr(type(row.own.merge), "version", 2)
    assert not before["merge"] & keys(replace(plan, rows=[row]))["merge"]
    job = row.own.training.outputs(PAIRS[0], plan.lora)[0].job
    monkeypatch.setattr(type(job), "version", 2)
    assert not before["personalize"] & keys(replace(plan, rows=[row]))["personalize"]


def test_aligned_training_needs_dataset_that_has_such_images(plan: Plan) -> None:
    photos = replace(plan, rows=[chosen("direct+training.pair")], dataset=DreamBoothStyleDropSpec(name="photos"))
    with pytest.raises(UserError, match=r"method/training=pair is trained on .* which dataset=photos does not have"):
        photos.artifacts("personalize")


def test_baselines_have_images_of_every_use(plan: Plan) -> None:
    """They use fewer adapters than the pair has concepts, and its prompts."""
    uses: tuple[Use, ...] = tuple(use for use in USES if use != "cross")
    for row in (each for each in plan.rows if each.method):
        for use in uses:
            images = replace(plan, uses=uses).generate(row, PAIRS[0], use)
            work: Any = images.work
            assert images.params["prompt"] == pair_for(PAIRS[0], use).prompt == work.pair.prompt


def test_uses_are_sample_sets_of_their_own(plan: Plan) -> None:
    with_uses = replace(plan, uses=("joint", "content", "style"))
    one, all_uses = keys(plan), keys(with_uses)
    assert one["merge"] == all_uses["merge"] and one["personalize"] == all_uses["personalize"]
    assert one["generate"] < all_uses["generate"] and one["score"] < all_uses["score"]
    assert len(all_uses["generate"]) == 4 * (4 * 3 + 1)  # the oracle has joint images only
    row, pair = plan.rows[-1], PAIRS[0]
    content, style = (plan.sample(row, pair, use) for use in ("content", "style"))
    assert content.params["prompt"] == "a sks mug" and style.params["prompt"] == "a mug in szn style"
    assert content.params["strength"] == {"content": 1.0, "style": 0.0}
    assert style.params["strength"] == {"content": 0.0, "style": 1.0}
    assert plan.score(row, pair, "content").params["scenes"] == [["a sks mug", "a mug"]]
    assert plan.score(row, pair, "content").params["references"] == plan.score(row, pair).params["references"]


def test_use_of_merge_without_separate_adapters_changes_its_prompt_only(plan: Plan) -> None:
    ties = Row.of("ties")
    content = plan.sample(ties, PAIRS[0], "content")
    assert "strength" not in content.params and content.params["prompt"] == "a sks mug"
