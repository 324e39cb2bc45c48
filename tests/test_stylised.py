"""Pairs that are known from images of the subject in the style only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose
from omegaconf import OmegaConf

from lorabench.base import UserError
from lorabench.config.dataset_schemas import MicroworldSpec, StylisedSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, MergeSpec, ScorerSpec, TrainerSpec
from lorabench.data import microworld as mw
from lorabench.data.catalogue import load_pairs, world_version
from lorabench.data.microworld_pairs import draw_photo, draw_styled, oracle
from lorabench.data.scenes import Prompts
from lorabench.data.stylised import crosses, is_stylised, stylised, three_prompts
from lorabench.data.uses import pair_for
from lorabench.engine.store import Store
from lorabench.merging.method import load
from lorabench.models.files import ModelFiles
from lorabench.personalization.schemes.dreambooth import DreamBooth
from lorabench.report.folder import RunFolder
from lorabench.report.protocols import load_protocol
from lorabench.report.table import Table
from lorabench.scoring.files import scorer_set
from lorabench.tasks.compare import trainable_rows
from lorabench.tasks.composition import check_images
from lorabench.tasks.plan import Plan
from lorabench.tasks.prompts import captions
from lorabench.tasks.rows import Row

SPEC = StylisedSpec(
    name="microworld_stylised", subjects="all", styles="all", contents=None, images=1, references=3, scenes=2,
    style_words=True, pairs=["mug_1/ink_1", "cat_1/gold_2"], count=2, pairs_seed=0,
)  # fmt: skip
PLAIN = MicroworldSpec("microworld", ["mug_1"], ["ink_1"], None, 2, 2, 1)


def test_both_concepts_have_image_of_pair_under_their_own_caption() -> None:
    mug, cat = load_pairs(SPEC, Prompts())
    assert [each.name for each in (mug, cat)] == ["mug_1+ink_1", "cat_1+gold_2"]
    assert three_prompts(mug) == ("a sks mug in ink style", "a sks mug", "a mug in ink style")
    assert three_prompts(cat) == ("a sks cat in gold style", "a sks cat", "a cat in gold style")
    for pair in (mug, cat):
        prompts, shown = three_prompts(pair), stylised(pair)
        [of_content], [of_style], [of_both] = (each.images for each in (*pair.concepts, shown))
        assert (of_both.prompt, of_content.prompt, of_style.prompt) == prompts and shown.name == pair.name
        images = [np.asarray(each.load()) for each in (of_content, of_style, of_both)]
        expected = np.asarray(draw_styled(pair.content_name, pair.style_name, 0))
        assert all(np.array_equal(each, expected) for each in images)
        assert len({of_content.sha256, of_style.sha256, of_both.sha256}) == 1 and is_stylised(pair)


def test_prompts_name_style_by_rare_token_if_asked() -> None:
    [pair, _] = load_pairs(replace(SPEC, style_words=False), Prompts(style_token="xyz"))
    assert three_prompts(pair) == ("a sks mug in xyz style", "a sks mug", "a mug in xyz style")
    assert pair.text == "a mug in ink style"


def test_references_are_ground_truth_and_not_trained_on() -> None:
    for pair in load_pairs(replace(SPEC, images=2, references=12), Prompts()):
        content, style = pair.concepts
        assert len(content.references) == len(style.references) == 12 and len(content.images) == len(style.images) == 2
        assert all(each.word != content.word for each in style.references)
        trained = {each.sha256 for each in content.images}
        assert not trained & {each.sha256 for each in (*content.references, *style.references)}
        first = np.asarray(content.references[0].load())
        assert np.array_equal(first, np.asarray(draw_photo(content.name, 2)))  # 0 and 1 are the poses trained on
        assert content.factors == mw.subject(content.name) and style.factors == mw.style(style.name)
        assert oracle(pair, 0).size == (64, 64)


def test_uses_have_scenes_of_their_own() -> None:
    mug, _ = load_pairs(SPEC, Prompts())
    content, style = pair_for(mug, "content"), pair_for(mug, "style")
    assert [scene.prompt for scene in mug.drawn] == ["a sks mug in ink style"]
    assert len(content.drawn) == len(style.drawn) == 2
    assert all(scene.prompt.startswith("a sks mug ") and "ink" not in scene.prompt for scene in content.drawn)
    words = [scene.prompt.split()[1] for scene in style.drawn]
    assert [scene.prompt for scene in style.drawn] == [f"a {word} in ink style" for word in words]
    assert "mug" not in words and set(words) <= set(mw.CLASSES) and len(set(words)) == 2
    assert {scene.prompt for scene in (*content.drawn, *style.drawn)} <= set(captions(mug))


def test_ordinary_pairs_are_not_stylised() -> None:
    [pair] = load_pairs(PLAIN, Prompts())
    assert not is_stylised(pair)
    with pytest.raises(UserError, match=r"mug_1\+ink_1 must be one subject in one style .* dataset=microworld_styl"):
        stylised(pair)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["mug_1+cat_1/ink_1"], r"one subject in one style per image, not mug_1\+cat_1\+ink_1"),
        (["mug_1/ink_1", "mug_1/gold_1"], "two images show the subject mug_1; use dataset.pairs=matched"),
        (["mug_1/ink_1", "cat_1/ink_1"], "two images show the style ink_1"),
        (["mug_1/inc_1"], "has no style 'inc_1'"),
    ],
)
def test_pairs_that_one_image_cannot_show_are_refused(pairs: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_pairs(replace(SPEC, pairs=pairs), Prompts())
    assert "\n" not in str(error.value)


def test_trainings_are_refused_on_datasets_without_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    method = load("direct")
    for spec in (SPEC, PLAIN):
        check_images(method, spec)
    with pytest.raises(UserError, match="before and after styling, which dataset=microworld_stylised does not have"):
        check_images(load("pair_customization"), SPEC)
    monkeypatch.setattr(DreamBooth, "images", "stylised")
    check_images(method, SPEC)
    with pytest.raises(UserError, match=r"images of the subject in the style, .* use dataset=microworld_stylised"):
        check_images(method, PLAIN)


def test_dataset_composes(hydra) -> None:
    cfg = compose("config", ["dataset=microworld_stylised", "dataset.count=12"])
    spec = OmegaConf.to_object(cfg.dataset)
    assert isinstance(spec, StylisedSpec) and world_version(spec) == mw.VERSION
    pairs = load_pairs(spec, Prompts())
    assert len(pairs) == len({each.content_name for each in pairs}) == len({each.style_name for each in pairs}) == 12


def test_cross_pairs_have_content_of_one_image_and_style_of_next() -> None:
    mug, cat = load_pairs(SPEC, Prompts())
    one, other = crosses([mug, cat])
    assert [pair.name for pair in (one, other)] == ["mug_1+gold_2", "cat_1+ink_1"]
    assert one.prompt == "a sks mug in gold style" and other.text == "a cat in ink style"
    assert one.sources == (mug, cat) and not is_stylised(one)
    assert one.contents == mug.contents and one.styles == cat.styles
    for pairs in ([mug], load_pairs(replace(PLAIN, styles=["ink_1", "gold_1"]), Prompts())):
        with pytest.raises(UserError, match=r"uses=\[cross\] takes the content of one stylized image"):
            crosses(pairs)


@pytest.fixture
def plan(tmp_path: Path, lora_spec: LoRASpec, generate_spec: GenerateSpec) -> Plan:
    return Plan(
        store=Store(tmp_path), pairs=load_pairs(SPEC, Prompts()), rows=[Row.of("dreambooth_lora")], dataset=SPEC,
        model=ModelFiles(tmp_path / "model", tmp_path / "model"), model_name="micro",
        scorers=scorer_set(ScorerSpec("micro", "micro", [], {})), weights="w", scorers_digest="s", lora=lora_spec,
        generation=generate_spec, merging=MergeSpec(1), trainer=TrainerSpec("cpu", "32-true", 0, 1), seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "dreambooth_lora", "blora", "joint_naive", "textual_inversion", "ziplora", "unziplora",
        "unziplora+merge.ties+sampling.plain", "unziplora+merge.duolora+sampling.plain",
    ],
)  # fmt: skip
def test_cross_sets_use_adapters_of_their_images(plan: Plan, name: str) -> None:
    """They train nothing, and each merge has the content of one training and the style of another."""
    plain = replace(plan, rows=[Row.of(name)])
    crossed = replace(plain, uses=("joint", "cross"))
    keys = [{each.key for each in p.artifacts("personalize")} for p in (plain, crossed)]
    assert keys[0] == keys[1]
    counts = {stage: len(crossed.artifacts(stage)) - len(plain.artifacts(stage)) for stage in ("merge", "generate")}
    assert counts == {"merge": 2, "generate": 2}
    [row] = crossed.rows
    mug, cat = plain.pairs
    [content, style] = crossed.trained.loras(row, crosses(plain.pairs)[0])
    [of_mug, of_cat] = plain.trained.loras(row, mug)[0], plain.trained.loras(row, cat)[1]
    assert (content.artifact.key, content.name) == (of_mug.artifact.key, of_mug.name)
    assert (style.artifact.key, style.name) == (of_cat.artifact.key, of_cat.name)
    assert crossed.key() != plain.key()


def test_training_without_separate_adapters_has_no_cross_sets(plan: Plan) -> None:
    joint = replace(plan, rows=[Row.of("dreambooth_joint")], uses=("joint", "cross"))
    with pytest.raises(UserError, match=r"joint has no LoRA of the content by itself, which uses=\[cross\] needs"):
        joint.artifacts("generate")


def test_table_has_columns_of_all_uses(commands, tiny: list[str], tmp_path: Path) -> None:
    result = commands.run(
        *tiny, f"output={tmp_path}", "method=dreambooth_lora", "dataset=microworld_stylised", "scorers=micro",
        "scorers.path=micro", "dataset.pairs=[mug_1/ink_1,cat_1/gold_2]", "dataset.references=1", "dataset.scenes=1",
        "protocol=single_image", "generate.images=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    [run] = tmp_path.glob("adhoc/dreambooth_lora-none-s0")
    scores = pd.read_parquet(run / "scores.parquet")
    assert set(scores["use"]) == {"joint", "content", "style", "cross"}
    assert len(list((run / "uses" / "cross" / "dreambooth_lora").glob("*/*.png"))) == 2
    columns = load_protocol("single_image").columns
    table = Table.of(RunFolder.load_all(run), load_protocol("single_image")).lines
    assert set(table["metric"]) == {column.name for column in columns}
    own = scores[scores["method"] == "dreambooth_lora"]
    recognized = own[(own["use"] == "joint") & own["metric"].isin(["subject_r1", "style_r1"])]
    images = recognized.groupby(["content", "style", "seed"])["value"].prod().reset_index()
    own = pd.concat([own, images.assign(use="joint", metric="both")])
    for column in columns:
        mine = own[(own["use"] == column.use) & (own["metric"] == column.metric)]
        found = table[(table["label"] == "dreambooth_lora") & (table["metric"] == column.name)]["mean"].item()
        assert found == pytest.approx(mine["value"].mean(), abs=1e-6) and len(mine) == 2


def test_rows_that_pairs_cannot_train_are_left_out_of_all(plan: Plan, capsys: pytest.CaptureFixture) -> None:
    rows = [Row.of(name) for name in ("direct", "textual_inversion", "inspiration_tree", "pair_customization")]
    assert [row.name for row in trainable_rows(plan, rows)] == ["direct", "textual_inversion", "inspiration_tree"]
    assert "1 rows are left out: pair_customization: method/training=pair is trained on" in capsys.readouterr().err
    several = replace(PLAIN, subjects=["mug_1", "mug_1+cat_1"])
    world = replace(plan, dataset=several, pairs=load_pairs(several, Prompts()))
    assert [row.name for row in trainable_rows(world, rows)] == ["direct", "pair_customization"]
