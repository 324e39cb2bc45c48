"""Inspiration Tree: its scores against loops, its choices, and the order of its phases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU
from test_stylised import SPEC
from torch import Tensor

from lorabench.base import UserError
from lorabench.config.recipe import token_recipe
from lorabench.config.schemas import GenerateSpec, LoRASpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.scenes import Prompts
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.inspiration_tree import (
    LEFT,
    RIGHT,
    Grower,
    consistency,
    is_swapped,
    most_central,
    train_tree,
)
from lorabench.personalization.training import Environment
from lorabench.personalization.tree import Tree
from lorabench.scoring.cosine import normalize
from lorabench.scoring.description import ScorerFiles
from lorabench.scoring.load import load_scorer

TREE = Tree(siblings=4, kept=2, candidates=2, trial=0.34, samples=2)


@pytest.fixture
def scorer(scorers: Path) -> Callable:
    return lambda kind: load_scorer(ScorerFiles.of(scorers / kind), "cpu")


@pytest.fixture
def grower(model: SDXL, lora_spec: LoRASpec, scorer) -> Grower:
    [pair, _] = load_pairs(SPEC, Prompts())
    env = Environment(0, CPU, generate=GenerateSpec(1, 2, 2.0, 4), scorer=scorer)
    return Grower(model, pair.contents[0], token_recipe(lora_spec, 0.05), TREE, env, seed=1)


def test_consistency_is_formula_in_loops() -> None:
    torch.manual_seed(0)
    left, right = normalize(torch.randn(4, 5)), normalize(torch.randn(3, 5))

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        values = [float(x @ y) for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        return sum(values) / len(values)

    own = mean(left, left, True), mean(right, right, True)
    expected = own[0] + own[1] + (min(own) - mean(left, right, False))
    assert consistency(left, right) == pytest.approx(expected, abs=1e-5)


def test_most_central_images_are_kept_in_their_order() -> None:
    angles = torch.tensor([0.0, 2.0, 0.1, 0.2, -2.0])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert most_central(rows, 3) == [0, 2, 3]
    assert most_central(rows, 9) == [0, 1, 2, 3, 4]


def test_content_is_token_that_is_more_like_original_in_content() -> None:
    def likeness(left: tuple[float, float], right: tuple[float, float]) -> dict[str, dict[str, float]]:
        return {name: dict(zip(("content", "style"), each, strict=True)) for name, each in
                (("left", left), ("right", right))}  # fmt: skip

    assert not is_swapped(likeness((0.9, 0.1), (0.1, 0.9)))
    assert is_swapped(likeness((0.1, 0.9), (0.9, 0.1)))
    assert not is_swapped(likeness((0.9, 0.8), (0.8, 0.8)))


def test_phases_run_in_order_and_report_their_choice(grower: Grower) -> None:
    steps: list[int] = []
    env = replace(grower.env, progress=steps.append, notes={})
    concept = replace(grower.concept, name="mug_1+ink_1")
    found = train_tree(grower.model, concept, grower.spec, TREE, ("sks", "ink"), env)
    total = TREE.steps(grower.spec.steps, images=1)
    assert steps == list(range(1, total + 1)) and total == 3 + 1 + 3
    assert [list(found[role].tokens) for role in ("content", "style")] == [["sks"], ["ink"]]
    assert all(not adapter for adapter in found.values())
    notes = env.notes
    assert len(notes["kept"]) == 2 and len(notes["consistency"]) == 2
    assert notes["seed"] == int(np.argmax(notes["consistency"])) and notes["content"] in ("left", "right")
    assert (notes["content"] == "right") == is_swapped(notes["likeness"])


def test_several_images_are_split_without_siblings(grower: Grower) -> None:
    several = replace(grower, concept=replace(grower.concept, images=grower.concept.images * 2))
    node = several.node({})
    assert [image.sha256 for image in node.images] == [image.sha256 for image in several.concept.images]
    assert {image.prompt for image in node.images} == {f"a {LEFT} {RIGHT}"}
    assert TREE.steps(3, images=2) == 1 + 3


def test_result_depends_on_image_and_seed_only(grower: Grower, tmp_path: Path) -> None:
    """Also after a training with other random draws in between, and in a scratch folder."""
    torch.manual_seed(5)
    one = train_tree(grower.model, grower.concept, grower.spec, TREE, ("a", "b"), replace(grower.env, notes={}))
    env = replace(grower.env, scratch=tmp_path, trainer=replace(CPU, checkpoint_every=1), notes={})
    two = train_tree(grower.model, grower.concept, grower.spec, TREE, ("a", "b"), env)
    assert (tmp_path / "best" / "training.pt").is_file()
    again = train_tree(grower.model, grower.concept, grower.spec, TREE, ("a", "b"), replace(env, notes={}))
    for role, trigger in (("content", "a"), ("style", "b")):
        for encoder, vectors in one[role].tokens[trigger].items():
            assert torch.equal(vectors, two[role].tokens[trigger][encoder])
            assert torch.equal(vectors, again[role].tokens[trigger][encoder])


def test_outputs_share_one_job_whose_key_has_all_settings(lora_spec: LoRASpec) -> None:
    [pair, other] = load_pairs(SPEC, Prompts())
    method = load("inspiration_tree")
    content, style = method.training.outputs(pair, lora_spec)
    assert content.job == style.job and (content.name, style.name) == ("content", "style")
    assert content.job.params["triggers"] == ["sks", "ink"]
    keys = [content.job.params, method.training.outputs(other, lora_spec)[0].job.params]
    changes: list[dict[str, Any]] = [{"samples": 3}, {"siblings": 30}, {"kept": 4}]
    for changed in changes:
        keys.append(load("inspiration_tree", **changed).training.outputs(pair, lora_spec)[0].job.params)
    assert len({str(key) for key in keys}) == 5
    with pytest.raises(UserError, match=r"method.kept=10 must be at most method.siblings=5"):
        load("inspiration_tree", siblings=5).training.outputs(pair, lora_spec)
