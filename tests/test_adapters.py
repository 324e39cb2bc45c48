"""The masked layer against the dense formula, the exported merge against attached adapters, and their removal."""

import pytest
import torch
from torch import nn

from lorabench.base import UserError
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import MaskedLoRA, Masks, attach, export, learned_params

IN, OUT, RANKS = 5, 4, (3, 2)


@pytest.fixture
def factors() -> list[Factors]:
    torch.manual_seed(0)
    return [Factors(torch.randn(rank, IN), torch.randn(OUT, rank)) for rank in RANKS]


def dense(base: nn.Linear, x, factors, masks, scales):
    """Return W x + sum_k scale_k[row] diag(o) U diag(r) D diag(i) x, with dense updates."""
    y = base(x)
    for k, (each, mask) in enumerate(zip(factors, masks, strict=True)):
        o, r, i = (torch.ones(n) if g is None else g for g, n in ((mask.o, OUT), (mask.r, each.rank), (mask.i, IN)))
        update = o.diag() @ each.up @ r.diag() @ each.down @ i.diag()
        y = y + scales[:, k, None, None] * (x @ update.T)
    return y


@pytest.mark.parametrize("kinds", ["", "o", "r", "i", "or", "ri", "ori"])
@pytest.mark.parametrize("both", [True, False])
def test_every_mask_equals_dense_formula(factors, kinds, both) -> None:
    sizes = {"o": lambda k: OUT, "r": lambda k: RANKS[k], "i": lambda k: IN}
    masks = [Masks(**{kind: torch.randn(sizes[kind](k)) for kind in kinds}) for k in (0, 1)]
    if not both:
        masks[0] = Masks()
    scales = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.5, -2.0]])
    base, x = nn.Linear(IN, OUT), torch.randn(4, 6, IN)
    layer = MaskedLoRA(base, factors, masks)
    layer.scale = scales.repeat_interleave(torch.tensor(RANKS), dim=1)
    torch.testing.assert_close(layer(x), dense(base, x, factors, masks, scales))
    layer.masked = False
    torch.testing.assert_close(layer(x), dense(base, x, factors, [Masks(), Masks()], scales))


def test_without_rows_every_adapter_is_at_full_strength(factors) -> None:
    base, x = nn.Linear(IN, OUT), torch.randn(2, 6, IN)
    expected = dense(base, x, factors, [Masks(), Masks()], torch.ones(2, 2))
    torch.testing.assert_close(MaskedLoRA(base, factors)(x), expected)


def test_layer_may_move_after_its_rows_are_set(factors) -> None:
    """Text encoders move in this way if they are offloaded."""
    with attach(nn.Sequential(nn.Linear(IN, OUT)), [LoRA({"0": each}) for each in factors]) as adapters:
        adapters.rows(torch.ones(1, 2))
        moved = adapters.network.to("meta")
        assert moved(torch.zeros(1, 6, IN, device="meta")).shape == (1, 6, OUT)


def random_masks(loras, kinds: str) -> dict[str, list[Masks]]:
    torch.manual_seed(1)
    sizes = {"o": lambda each: each.up.shape[0], "r": lambda each: each.rank, "i": lambda each: each.down.shape[1]}
    return {
        layer: [Masks(**{kind: torch.rand(sizes[kind](lora[layer])) for kind in kinds}) for lora in loras]
        for layer in loras[0]
    }


def run(model, rows: int = 2):
    torch.manual_seed(2)
    sample = torch.randn(rows, model.unet.config.in_channels, 16, 16)
    return model.predict(sample, torch.tensor([10, 600]), model.encode_prompts(["a mug", "a boat"]))


@pytest.mark.parametrize("kinds", ["o", "r", "i", "ori"])
def test_exported_merge_equals_live_one(model, loras, kinds) -> None:
    masks = random_masks(loras, kinds)
    with model.attach(loras, masks) as adapters:
        adapters.rows(torch.tensor([[0.7, 1.2]]))
        live = run(model)
    exported = export(loras, masks, dict.fromkeys(loras[0], (0.7, 1.2)))
    assert exported.rank == 5
    with model.attach([exported]):
        torch.testing.assert_close(run(model), live, rtol=1e-5, atol=1e-5)


def test_detaching_restores_very_layers(model, loras) -> None:
    before, expected = dict(model.denoiser.named_modules()), run(model)
    with pytest.raises(RuntimeError, match="stop"), model.attach(loras):
        assert not torch.allclose(run(model), expected)
        raise RuntimeError("stop")
    after = dict(model.denoiser.named_modules())
    assert all(after[layer] is module for layer, module in before.items()) and len(after) == len(before)
    torch.testing.assert_close(run(model), expected, rtol=0, atol=0)


def test_adapters_may_cover_different_layers(model, loras) -> None:
    content, style = loras
    layer, *others = content.layers
    partial = LoRA({layer: content[layer]})
    with model.attach([partial, style]) as adapters:
        live = run(model)
        assert adapters.layers[others[0]].ranks == (0, 2)
    with model.attach([export([partial, style])]):
        torch.testing.assert_close(run(model), live, rtol=1e-5, atol=1e-5)


def test_row_sees_its_own_scales_only(model, loras) -> None:
    with model.attach(loras) as adapters:
        adapters.rows(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        mixed = run(model)
        for row, scales in enumerate(([[1.0, 0.0]], [[0.0, 1.0]])):
            adapters.rows(torch.tensor(scales))
            torch.testing.assert_close(run(model)[row], mixed[row], rtol=1e-5, atol=1e-5)


def test_lora_of_another_model_is_refused(model, loras) -> None:
    layer = loras[0].layers[0]
    with pytest.raises(UserError, match="not a linear layer"):
        model.attach([LoRA({"mid_block.nowhere": loras[0][layer]})])
    with pytest.raises(UserError, match="trained on this model"):
        model.attach([LoRA({layer: Factors(torch.ones(1, 3), torch.ones(3, 1))})])


def test_learned_params_count_every_mask(loras) -> None:
    layers = len(loras[0])
    assert learned_params(random_masks(loras, "r")) == layers * 5
