"""Prompts beyond what adapters were trained on, and the table of their scores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lorabench.base import UserError
from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.concepts import ROLES, Role
from lorabench.data.extension import EXTENSIONS
from lorabench.data.scenes import Prompts
from lorabench.data.uses import Use, pair_for, strength_for
from lorabench.report.by_use import write_by_use


@pytest.fixture
def world_pair():
    [found] = load_pairs(MicroworldSpec("microworld", ["mug_1"], ["ink_1"], None, 1, 1, 1), Prompts())
    return found


def test_prompts_replace_content_style_or_both(world_pair, pair) -> None:
    first, second, both = (pair_for(world_pair, use) for use in EXTENSIONS)
    thing, look = both.alone.content, both.alone.style
    assert first.prompt == f"a {thing} in szn style" and first.text == f"a {thing} in ink style"
    assert second.prompt == f"a sks mug in {look}" and second.text == f"a mug in {look}"
    assert both.prompt == both.text == f"a {thing} in {look}"
    assert thing != "mug" and look != "ink style" and "sks" not in both.prompt
    assert all(strength_for(use) is None for use in EXTENSIONS)  # all adapters, as both words are marked
    assert pair_for(pair, "new_both").prompt == "a bicycle in sketch style"  # photographs


def test_asked_class_and_family_are_expected_with_references_of_trained_ones(world_pair) -> None:
    both = pair_for(world_pair, "new_both")
    [content], [style] = both.contents, both.styles
    assert content.factors.cls == both.alone.content and f"{style.factors.family} style" == both.alone.style
    assert content.name == "mug_1" and content.references == world_pair.contents[0].references
    assert pair_for(world_pair, "new_style").contents == world_pair.contents


def test_several_subjects_are_refused() -> None:
    [several] = load_pairs(MicroworldSpec("microworld", ["mug_1+cat_1"], ["ink_1"], None, 1, 1, 1), Prompts())
    with pytest.raises(UserError, match=r"uses=\[new_style\] needs one subject in one style"):
        pair_for(several, "new_style")


def test_prompts_of_one_concept_keep_all_adapters(world_pair) -> None:
    uses: dict[Role, Use] = {"content": "content_prompt", "style": "style_prompt"}
    for role, use in uses.items():
        named = pair_for(world_pair, use)
        assert named.alone == pair_for(world_pair, role).alone
        assert [bool(named.alone.marked(each)) for each in ROLES] == [each == role for each in ROLES]
        assert strength_for(use) is None and strength_for(role) == {each: each == role for each in ROLES}


def scores_of(*uses: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "dataset": "microworld", "content": "mug_1", "style": style, "prompt": "p", "seed": 0, "method": "craft",
            "ablation": "none", "use": use, "metric": metric, "backbone": "x@micro", "value": value, "image": 0,
        }
        for use in uses
        for style in ("ink_1", "neon_1")
        for metric, value in (("clip_t", 0.5), ("class_acc", 1.0), ("csd/style", 0.3), ("dino/content", 0.2))
    )  # fmt: skip


def test_table_marks_leaks(tmp_path: Path) -> None:
    scores_of("joint").to_parquet(tmp_path / "scores.parquet")
    write_by_use([tmp_path], tmp_path)
    assert not list(tmp_path.glob("*.md"))
    scores_of("joint", *EXTENSIONS).to_parquet(tmp_path / "scores.parquet")
    write_by_use([tmp_path], tmp_path)
    assert not (tmp_path / "routing.md").exists()
    parts = (tmp_path / "semantic_extension.md").read_text().split("## ")
    assert "subject (dino/content, lower is better)" in parts[1] and "style (csd/style)" in parts[1]
    assert "style (csd/style, lower is better)" in parts[2] and "subject (dino/content)" in parts[2]
    assert parts[3].count("lower is better") == 2 and len(pd.read_csv(tmp_path / "semantic_extension.csv")) == 12


def test_routing_has_table_of_prompts_that_name_one_concept(tmp_path: Path) -> None:
    scores_of("joint", "content_prompt", "style_prompt").to_parquet(tmp_path / "scores.parquet")
    write_by_use([tmp_path], tmp_path)
    assert not (tmp_path / "semantic_extension.md").exists()
    _, content, style = (tmp_path / "routing.md").read_text().split("## ")
    assert "style (csd/style, lower is better)" in content and "subject (dino/content)" in content
    assert "style (csd/style)" in style and "subject (dino/content, lower is better)" in style
    assert set(pd.read_csv(tmp_path / "routing.csv")["use"]) == {"content_prompt", "style_prompt"}


def test_interval_of_crossed_pairs_resamples_subjects_and_styles(tmp_path: Path) -> None:
    """Six subjects in two styles."""
    one = scores_of("new_style")
    rows = pd.concat([one.assign(content=f"c{k}") for k in range(6)])
    rows["value"] += 0.2 * (rows["style"] == "neon_1")
    rows.to_parquet(tmp_path / "scores.parquet")
    write_by_use([tmp_path], tmp_path)
    found = pd.read_csv(tmp_path / "semantic_extension.csv").set_index("measure").loc["subject"]
    assert found["pairs"] == 12
    assert (found["low"], found["high"]) == pytest.approx((0.2, 0.4))  # the range of the two styles
