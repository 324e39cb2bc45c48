"""The columns of UnZipLoRA: their scores, their choice, and blocks of one adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_benchmarks import NewMatrices, dense_shapes
from torch import Tensor
from unzip_training import STEPS, backward, fit_module, job_of, trainee

from lorabench.base import UserError
from lorabench.engine.lightning import quiet_trainer
from lorabench.lora.factors import Factors
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.columns import choose, chooses, dedicated, is_masked, period_of, scores


def test_score_is_sum_over_every_entry() -> None:
    draw = torch.Generator().manual_seed(0)
    u, d, du, dd, o = (torch.randn(*shape, generator=draw) for shape in ((4, 2), (2, 5), (4, 2), (2, 5), (4,)))
    products = torch.zeros(4, 5)
    for j in range(4):
        for i in range(5):
            update = sum(o[j] * u[j, r] * d[r, i] for r in range(2))
            products[j, i] = update * sum(o[j] * (u[j, r] * dd[r, i] + du[j, r] * d[r, i]) for r in range(2))
    torch.testing.assert_close(scores(Factors(d, u), Factors(dd, du), o), products.abs().mean(1), atol=1e-5, rtol=1e-5)
    counted = scores(Factors(d, u), Factors(dd, du), o, "count", 0.5)
    torch.testing.assert_close(counted, (products.abs() > 0.5).float().mean(1))
    assert not scores(Factors(d, torch.zeros_like(u)), Factors(dd, du), o).any()  # why `up` does not start at zero


@pytest.mark.parametrize(
    ("rated", "free", "stable", "strict"),
    [
        ([3.0, 1.0, 2.0, 0.0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]),
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]),
        ([5.0, 1.0, 1.0, 1.0], [0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]),
        ([5.0, 4.0, 3.0, 0.0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]),
        ([5.0, 4.0, 3.0, 0.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_choice_with_ties(rated, free, stable, strict) -> None:
    """`stable` takes two; `strict` takes one fewer, and none if all are equal."""
    found = [
        choose(torch.tensor(rated), 2, torch.tensor(free).bool(), ties).int().tolist() for ties in ("stable", "strict")
    ]
    assert found == [stable, strict]


def test_columns_are_chosen_after_steps_1_201_and_401() -> None:
    period = period_of(600, 3)
    assert [step for step in range(600) if chooses(step, period)] == [1, 201, 401]
    assert [step for step in range(600) if not is_masked(step, period)] == [0, 1, 201, 401]


@pytest.mark.parametrize(("preset", "shares"), [("unziplora", [0.25] * 3), ("unziplora_released", [0.25, 0.5, 0.75])])
def test_released_columns_add_up(model: SDXL, lora_spec, preset: str, shares: list[float]) -> None:
    """Fresh columns replace the last ones; released ones are added to them, up to 3 x 25 %."""
    spec = replace(lora_spec, steps=12)
    job = job_of(spec, preset, recalibrations=3, columns=0.25, ties="stable", score="mean", dedicated="none")
    with trainee(model, job) as module:
        seen: dict[int, Tensor] = {}
        before = module.recalibrate

        def recalibrate() -> None:
            before()
            seen[module.update] = module.columns.clone()

        module.recalibrate = recalibrate
        fit_module(module, spec.steps)
    assert list(seen) == [1, 5, 9]
    for columns, share in zip(seen.values(), shares, strict=True):
        assert 0 < float(columns.mean()) <= share
        for each in columns.split(module.widths, dim=1):
            # The style avoids the content's columns; the content may choose the style's later.
            assert not each.prod(dim=0).any() or (preset == "unziplora_released" and columns is not seen[1])
            assert all(row.sum() <= share * len(row) for row in each)
            if preset == "unziplora":
                assert all(row.sum() == int(0.25 * len(row)) for row in each)
    first, second, third = seen.values()
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert preset == "unziplora" or bool(((first <= second) & (second <= third)).all())


def test_blocks_dedicated_to_one_adapter(model: SDXL) -> None:
    layers = model.layers.trained()
    content, style = (
        ["up_blocks.0.attentions.0", "up_blocks.0.attentions.2"],
        ["up_blocks.0.attentions.1", "up_blocks.1"],
    )
    found = dedicated(layers, "names", content, style, model.layers.modules)
    for name, (of_content, of_style) in found.items():
        block = ".".join(name.split(".")[:4])
        assert of_content == (block in content) and of_style == (
            block == content[0][:-1] + "1" or "up_blocks.1" in block
        )
    depth = dedicated(layers, "depth", content, style)
    assert all(depth[name] == (layer.depth > 0.5, layer.depth < 0.5) for name, layer in layers.items())
    assert set(dedicated(layers, "none", content, style).values()) == {(False, False)}
    with pytest.raises(
        UserError, match=r"method\.style_blocks=up_blocks\.7 has no layer to adapt; use method\.dedicated=depth"
    ):
        dedicated(layers, "names", content, ["up_blocks.7"], model.layers.modules)


def test_dense_update_is_formed_only_where_columns_are_chosen(model: SDXL, lora_spec) -> None:
    with trainee(model, job_of(replace(lora_spec, steps=STEPS, batch=3))) as module:
        module.trainer = quiet_trainer(model.device, "32-true")
        seen = {}
        for step in (0, 1, 2):
            with NewMatrices(model.unet) as matrices:
                backward(module, step)
            with NewMatrices(model.unet) as later:
                module.on_after_backward()
            seen[step] = matrices.shapes, later.shapes
        dense = dense_shapes(model)
        assert not any(shapes & dense for shapes, _ in seen.values())
        assert seen[1][1] & dense and not seen[0][1] and not seen[2][1]
