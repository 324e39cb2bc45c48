"""LoHa and LoKr files are read as the updates of LyCORIS, by independent formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, randn

from lorabench.lora.adapter import Adapter
from lorabench.lora.files.read import PRODUCT

STEM = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT, IN = 12, 20


def loha() -> tuple[dict[str, Tensor], Tensor]:
    a1, b1, a2, b2 = randn(OUT, 3), randn(3, IN), randn(OUT, 3), randn(3, IN)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.5)}
    return parts, (a1 @ b1) * (a2 @ b2) * (1.5 / 3)


def lokr(first: bool, second: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Return whether both sides are full matrices; alpha applies only if one of them is a product."""
    parts: dict[str, Tensor] = {"alpha": torch.tensor(1.5)}
    sides = []
    for side, is_whole, (height, width) in ((1, first, (3, 4)), (2, second, (4, 5))):
        if is_whole:
            parts[f"lokr_w{side}"] = randn(height, width)
            sides.append(parts[f"lokr_w{side}"])
        else:
            parts[f"lokr_w{side}_a"], parts[f"lokr_w{side}_b"] = randn(height, 2), randn(2, width)
            sides.append(parts[f"lokr_w{side}_a"] @ parts[f"lokr_w{side}_b"])
    return parts, torch.kron(*sides) * (1.0 if first and second else 1.5 / 2)


CASES = {
    "LoHa": loha, "LoKr whole": lambda: lokr(True, True), "LoKr": lambda: lokr(False, False),
    "LoKr first": lambda: lokr(True, False), "LoKr second": lambda: lokr(False, True),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_product_updates_are_read_exactly(tmp_path: Path, case: str) -> None:
    torch.manual_seed(0)
    parts, expected = CASES[case]()
    save_file({f"{STEM}.{name}": tensor for name, tensor in parts.items()}, tmp_path / "a.safetensors")
    adapter = Adapter.open(tmp_path / "a.safetensors")
    factors = adapter[LAYER]
    assert adapter.metadata[PRODUCT] == case.split()[0]
    assert adapter.shapes[LAYER] == factors.shape and expected.shape == (OUT, IN)
    torch.testing.assert_close(factors.up @ factors.down, expected, rtol=1e-4, atol=1e-5)
    small, error = adapter.compressed(2)
    exact = torch.linalg.svdvals(expected)
    assert small[LAYER].rank == 2 and error.overall == pytest.approx(float(exact[2:].norm() / exact.norm()), rel=1e-3)
