"""B-LoRA: two blocks, each of one role, on the live UNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import CPU

from lorabench.errors import UserError
from lorabench.method import load
from lorabench.models.adapted import live_sites
from lorabench.stages.merge import MergeItem, merge_all
from lorabench.stages.personalise import personalise

W4, W5 = "up_blocks.0.attentions.0.", "up_blocks.0.attentions.1."


@pytest.mark.parametrize("squared", [False, True])
def test_the_merge_is_one_block_of_each(model, loras, pair, squared) -> None:
    method = load("blora", content=0.9, style=1.1, squared=squared)
    [result] = merge_all(model, method, [MergeItem(loras, pair)], 0, CPU)
    expected = {W4: (loras[0], 0.9), W5: (loras[1], 1.1)}
    assert {site for site in loras[0] if site.startswith((W4, W5))} == set(result.lora)
    for site, factors in result.lora.items():
        lora, alpha = expected[site[: len(W4)]]
        wanted = lora[site].up @ lora[site].down * (alpha**2 if squared else alpha)
        torch.testing.assert_close(factors.up @ factors.down, wanted)


def test_loras_are_trained_in_both_blocks_alone(model, pair, lora_spec) -> None:
    spec = load("blora").lora("content", lora_spec)
    lora = personalise(model, pair.concepts[0], spec, 0, CPU)
    assert {site[: len(W4)] for site in lora} == {W4, W5}


def test_a_block_that_is_not_there_is_named(model, loras) -> None:
    method: Any = load("blora", style_block="up_blocks.0.attentions.7")
    with pytest.raises(UserError, match=r"method.style_block=up_blocks.0.attentions.7 is no block"):
        method.gates(live_sites(model.unet, loras, ("content", "style")), 0)
