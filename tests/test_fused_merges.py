"""Fused and split forms of one FLUX.1 update give the same merge, for every method.

kohya's trainer has one `down` for queries, keys and values (in single blocks for the feed-forward network too), other
trainers have one per layer. With `split_qkv`, kohya's trains one per layer and saves them as blocks of one. Methods
that look at factors, ranks, norms or subspaces must see the same layers in all. alpha / rank is the same, because
peft's combinations treat it apart from the factors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_hypernetwork
from merges import fitting, merge_all
from safetensors.torch import save_file
from torch import Tensor
from transformers_tiny import tiny_transformer

from lorabench.base import CONF
from lorabench.data.pairs import Pair
from lorabench.lora.adapter import Adapter
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.merge import MergeItem
from lorabench.merging.method import load as load_method
from lorabench.models.model import DiffusionModel
from lorabench.sampling.rule import Context

NAMES = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
WIDTH, RANK, ALPHA = 32, 4, 2.0
DOUBLE, SINGLE = "transformer_blocks.{}.attn", "single_transformer_blocks.{}"
PARTS = {  # fused layer of block 0 or 1: layers of diffusers, with the first and the last row of `up` in widths
    "double_blocks_{}_img_attn_qkv": {f"{DOUBLE}.to_{x}": (i, i + 1) for i, x in enumerate("qkv")},
    "double_blocks_{}_txt_attn_qkv": {f"{DOUBLE}.add_{x}_proj": (i, i + 1) for i, x in enumerate("qkv")},
    "single_blocks_{}_linear1": {
        **{f"{SINGLE}.attn.to_{x}": (i, i + 1) for i, x in enumerate("qkv")}, f"{SINGLE}.proj_mlp": (3, 7),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return tiny_transformer("dev", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_hypernetwork(tmp_path_factory.mktemp("network"), WIDTH)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Adapter, Adapter]]:
    """Return content and style by form."""
    folder = tmp_path_factory.mktemp("files")
    return {
        form: (written(folder / f"{form}0.safetensors", form, 0), written(folder / f"{form}1.safetensors", form, 1))
        for form in ("fused", "split", "blocks", "apart")
    }


def written(path: Path, form: str, seed: int) -> Adapter:
    """Write and read a LoRA of two blocks of each kind.

    "fused" and "split" are one update, and so are "blocks" and "apart", in which each part has a `down` of its own.
    """
    rng, tensors = torch.Generator().manual_seed(seed), {}
    for fused, parts in PARTS.items():
        for block in (0, 1):
            outputs = WIDTH * max(stop for _, stop in parts.values())
            down = torch.randn(RANK, WIDTH, generator=rng)
            up = torch.randn(outputs, RANK, generator=rng)
            downs = [torch.randn(RANK, WIDTH, generator=rng) for _ in parts]
            if form == "blocks":
                rows = [up[start * WIDTH : stop * WIDTH] for start, stop in parts.values()]
                stem = f"lora_unet_{fused.format(block)}"
                tensors |= keys(stem, torch.cat(downs), torch.block_diag(*rows), ALPHA * len(parts))
                continue
            if form == "fused":
                tensors |= keys(f"lora_unet_{fused.format(block)}", down, up)
                continue
            for own, (name, (start, stop)) in zip(downs, parts.items(), strict=True):
                stem = f"lora_transformer_{name.format(block).replace('.', '_')}"
                tensors |= keys(stem, down if form == "split" else own, up[start * WIDTH : stop * WIDTH])
    save_file(tensors, path)
    return Adapter.load(path)


def keys(stem: str, down: Tensor, up: Tensor, alpha: float = ALPHA) -> dict[str, Tensor]:
    return {
        f"{stem}.lora_down.weight": down.clone(), f"{stem}.lora_up.weight": up.clone(),
        f"{stem}.alpha": torch.tensor(alpha),
    }  # fmt: skip


@pytest.mark.parametrize(("one", "other"), [("fused", "split"), ("blocks", "apart")])
def test_forms_are_read_as_same_factors(forms: dict[str, tuple[Adapter, Adapter]], one: str, other: str) -> None:
    for fused, split in zip(forms[one], forms[other], strict=True):
        assert fused.layers == split.layers and len(fused.layers) == 2 * (3 + 3 + 4)
        for name, each in split.items():
            assert torch.equal(fused[name].up, each.up) and torch.equal(fused[name].down, each.down)
            assert fused[name].scale == each.scale


BLOCKS: dict[str, dict[str, Any]] = {  # presets of SDXL's blocks
    "blora": {"content_block": ["transformer_blocks.0", "single_transformer_blocks.0"],
              "style_block": ["transformer_blocks.1", "single_transformer_blocks.1"]},
    "duolora_released": {"prior": {"content": ["transformer_blocks"], "style": ["single_transformer_blocks"]}},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_forms_give_same_merge_and_scales(
    flux: DiffusionModel, forms: dict[str, tuple[Adapter, Adapter]], pair: Pair, network: Path, name: str
) -> None:
    """Scales are those of the sampling rule, by step and layer, which depend on factors in K-LoRA and EST-LoRA."""
    method = load_method(name, **({"weights": str(network)} if name == "lora_rar" else {}), **BLOCKS.get(name, {}))
    if isinstance(method.merge, LearnedMasks):
        method = method.with_settings(fit=replace(method.merge.fit, steps=2))

    def outcome(content: str, style: str) -> dict[str, Tensor]:
        loras = tuple(fitting(flux, method, (forms[content][0], forms[style][1])))
        [result] = merge_all(flux, method, [MergeItem(loras, pair)])
        context = Context(tuple(pair.roles), 4, 3.0, flux.layers.adapted(loras, pair.roles))
        scales = method.sampling.scales(loras, context)
        rule = {} if scales is None else {"scales": scales}
        return rule | {layer: each.up @ each.down for layer, each in result.file.items()}

    for one, others in {
        ("split", "split"): ["fused fused", "fused split"],
        ("split", "apart"): ["fused blocks"],
    }.items():
        expected = outcome(*one)
        assert set(expected) - {"scales"} <= set(forms["split"][0].layers)
        for other in others:
            found = outcome(*other.split())
            assert found.keys() == expected.keys()
            for layer, update in expected.items():
                torch.testing.assert_close(found[layer], update, rtol=1e-4, atol=1e-4)
