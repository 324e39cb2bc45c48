"""Prompts beyond what adapters were trained on, and the table of their scores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lorabench.base import UserError
from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.extension import EXTENSIONS
from lorabench.data.pairs import Prompts
from lorabench.data.uses import pair_for, strength_for
from lorabench.report.semantic_extension import DATA, FILE, write_semantic_extension


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


def test_table_marks_leaks(tmp_path: Path) -> None:
    rows = [
        {
            "dataset": "microworld", "content": "mug_1", "style": style, "prompt": "p", "seed": 0, "method": "craft",
            "ablation": "none", "use": use, "metric": metric, "backbone": "x@micro", "value": value, "image": 0,
        }
        for use in ("joint", *EXTENSIONS)
        for style in ("ink_1", "neon_1")
        for metric, value in (("clip_t", 0.5), ("class_acc", 1.0), ("csd/style", 0.3), ("dino/content", 0.2))
    ]  # fmt: skip
    pd.DataFrame(rows[:8]).to_parquet(tmp_path / "scores.parquet")
    write_semantic_extension([tmp_path], tmp_path)
    assert not (tmp_path / FILE).exists()
    pd.DataFrame(rows).to_parquet(tmp_path / "scores.parquet")
    write_semantic_extension([tmp_path], tmp_path)
    parts = (tmp_path / FILE).read_text().split("## ")
    assert "subject (dino/content, lower is better)" in parts[1] and "style (csd/style)" in parts[1]
    assert "style (csd/style, lower is better)" in parts[2] and "subject (dino/content)" in parts[2]
    assert parts[3].count("lower is better") == 2 and len(pd.read_csv(tmp_path / DATA)) == 12
