"""Closed-form masks against dense least squares, against independent activations, and in their limits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, random_lora
from merges import merged
from scipy.optimize import minimize
from test_merge import short
from torch import Tensor

from lorabench.lora.adapter import Factors, in_basis
from lorabench.merging.draws import Draws
from lorabench.merging.least_squares import LocalError, input_error, least, least_nonnegative, output_error, rank_error
from lorabench.merging.merge import MergeItem
from lorabench.merging.method import load
from lorabench.merging.moments import teacher_moments

RANKS = [(3, 2), (1, 4), (4, 2, 3), (3, 0)]
KINDS = {"rank": rank_error, "in": input_error, "out": output_error}


def problem(ranks, features=6, out=7, tokens=40, seed=0) -> tuple[list[Factors], list[Tensor]]:
    """Return random factors and each teacher's inputs [tokens, in], which are correlated as activations are."""
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    factors = [Factors(randn(rank, features), randn(out, rank)) for rank in ranks]
    return factors, [randn(tokens, features) @ randn(features, features) for _ in ranks]


def moments_of(kind: str, factors: list[Factors], inputs: list[Tensor]) -> Tensor:
    down = torch.cat([each.down for each in factors])
    return torch.stack([v.mT @ v / len(v) for v in (x if kind == "in" else x @ down.mT for x in inputs)])


def dense(kind: str, factors: list[Factors], inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the least squares as a matrix and a target. A column is the output of one entry of the masks."""
    unit = {
        "rank": lambda each: [torch.outer(u, d) for u, d in zip(each.up.mT, each.down, strict=True)],
        "in": lambda each: [torch.outer(w, e) for w, e in zip((each.up @ each.down).mT, torch.eye(6), strict=True)],
        "out": lambda each: [torch.outer(e, w) for e, w in zip(torch.eye(7), each.up @ each.down, strict=True)],
    }[kind]
    updates = [update.double() for each in factors for update in unit(each)]
    columns = [torch.cat([(x @ update.mT / len(x) ** 0.5).flatten() for x in inputs]) for update in updates]
    target = [(x @ (each.up @ each.down).mT / len(x) ** 0.5).flatten() for each, x in zip(factors, inputs, strict=True)]
    return torch.stack(columns, dim=1), torch.cat(target)


def flat(kind: str, m: Tensor) -> Tensor:
    return m.mT.flatten() if kind == "out" else m


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_dense_least_squares_solution(kind, ranks) -> None:
    factors, inputs = problem(ranks)
    error = KINDS[kind](factors, moments_of(kind, factors, inputs))
    matrix, target = dense(kind, factors, inputs)
    m = flat(kind, least(error, 1e-10))
    torch.testing.assert_close(matrix @ m, matrix @ torch.linalg.lstsq(matrix, target).solution, rtol=1e-5, atol=1e-5)
    if kind == "rank":  # unique; in the others the columns of a narrow update depend on one another
        torch.testing.assert_close(m, torch.linalg.lstsq(matrix, target).solution, rtol=1e-5, atol=1e-5)
    anything = torch.randn_like(least(error, 1.0))
    residual = matrix @ flat(kind, anything) - target
    torch.testing.assert_close(error(anything).sum(), residual @ residual)
    torch.testing.assert_close(error.c.sum(), target @ target)
    ones = torch.ones_like(anything)
    assert error(least(error, 1e-10)).sum() <= error(ones).sum() + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_ridge_pulls_towards_one(kind) -> None:
    factors, inputs = problem((3, 2))
    error = KINDS[kind](factors, moments_of(kind, factors, inputs))
    matrix, target = dense(kind, factors, inputs)
    m = least(error, 0.1)
    weights = 0.1 * error.A.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).expand_as(m)
    rows = flat(kind, weights).sqrt().diag()
    tall = torch.cat([matrix, rows]), torch.cat([target, rows.sum(1)])
    torch.testing.assert_close(flat(kind, m), torch.linalg.lstsq(*tall).solution, rtol=1e-5, atol=1e-5)
    assert (least(error, 1e9) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("strength", [0.01, 0.3, 3.0])
def test_lasso_is_optimal(ranks, strength) -> None:
    factors, inputs = problem(ranks, seed=1)
    error = rank_error(factors, moments_of("rank", factors, inputs))
    penalty = torch.zeros(sum(ranks), dtype=torch.float64)
    penalty[: ranks[0]] = strength * error.c
    m = least_nonnegative(error, 1e-6, penalty)
    slope = 2 * (error.A @ m - error.b) + penalty + 2e-6 * error.A.diagonal().mean() * (m - 1)
    assert (m >= 0).all()
    scale = float(error.c)
    torch.testing.assert_close(slope[m > 0] / scale, torch.zeros_like(slope[m > 0]), rtol=0, atol=1e-9)
    assert (slope[m == 0] >= -1e-9 * scale).all()
    found = minimize(
        lambda v: float(error(torch.from_numpy(v)) + penalty @ torch.from_numpy(v)) / scale,
        np.ones(sum(ranks)),
        bounds=[(0, None)] * sum(ranks),
        method="L-BFGS-B",
        options={"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-10},
    )
    assert float(error(m) + penalty @ m) / scale <= found.fun + 1e-6
    torch.testing.assert_close(m, torch.from_numpy(found.x), rtol=1e-2, atol=1e-2)


def test_heavy_prior_switches_dominant_adapter_off_and_no_other() -> None:
    factors, inputs = problem((3, 2), seed=2)
    error = rank_error(factors, moments_of("rank", factors, inputs))
    m = least_nonnegative(error, 1e-6, torch.tensor([1e6, 1e6, 1e6, 0, 0], dtype=torch.float64))
    assert (m[:3] == 0).all() and (m[3:] > 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_that_do_not_meet_keep_masks_of_one(kind) -> None:
    """Content inputs are in a space that only the content adapter reads, style inputs in that of the style adapter."""
    factors, inputs = problem((3, 2))
    left, right = torch.eye(6, dtype=torch.float64).split(3)
    factors = [
        Factors(each.down @ (half.mT @ half), each.up) for each, half in zip(factors, (left, right), strict=True)
    ]
    inputs = [x @ (half.mT @ half) for x, half in zip(inputs, (left, right), strict=True)]
    error = KINDS[kind](factors, moments_of(kind, factors, inputs))
    m = least(error, 1e-3)
    torch.testing.assert_close(m, torch.ones_like(m), rtol=0, atol=1e-12)
    assert error(m).sum() < 1e-12 * error.c.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_identical_adapters_share_work(kind) -> None:
    factors, inputs = problem((3, 3))
    twins = [factors[0], factors[0]]
    error = KINDS[kind](twins, moments_of(kind, twins, inputs))
    m = flat(kind, least(error, 1e-6))
    torch.testing.assert_close(m[: len(m) // 2] + m[len(m) // 2 :], torch.ones(len(m) // 2).double(), rtol=0, atol=1e-3)
    if kind != "in":  # a narrow update has input masks that it does not see at all
        torch.testing.assert_close(m, torch.full_like(m, 0.5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_input_reaches_keeps_masks_of_one(kind) -> None:
    """One adapter is zero. Its teacher still demands that the other one has no output for its inputs."""
    factors, inputs = problem((3, 2))
    factors[1] = Factors(factors[1].down, torch.zeros_like(factors[1].up))
    error = KINDS[kind](factors, moments_of(kind, factors, inputs))
    mask = flat(kind, least(error, 1e-3))
    silent = flat(kind, error.A.diagonal(dim1=-2, dim2=-1)) == 0
    torch.testing.assert_close(mask[silent], torch.ones_like(mask[silent]))
    assert error(least(error, 1e-3)).sum() <= error(torch.ones_like(least(error, 1e-3))).sum()
    nothing = LocalError(torch.zeros(5, 5).double(), torch.zeros(5).double(), torch.zeros(()).double())
    assert (least(nothing, 1e-3) == 1).all()


def few_steps(model, pair, adapters, count=2):
    draws = Draws(model, pair, MergeItem((), pair).seed(0))
    return [draws.step(i, 2, adapters, {}) for i in range(count)]


def seen(model, lora, noised, t) -> dict[str, Tensor]:
    """Return each layer's inputs [tokens, in] with one LoRA's dense update in the weights, without our adapters."""
    inputs, weights = {}, {}
    hooks = []
    for layer, factors in lora.items():
        module = model.unet.get_submodule(layer)
        weights[layer] = module.weight.data.clone()
        module.weight.data += factors.up @ factors.down
        catch = lambda _, args, layer=layer: inputs.__setitem__(layer, args[0].detach().flatten(0, -2))  # noqa: E731
        hooks.append(module.register_forward_pre_hook(catch))
    with torch.no_grad():
        model.predict(noised.x, t, noised.prompt)
    for hook, (layer, weight) in zip(hooks, weights.items(), strict=True):
        hook.remove()
        model.unet.get_submodule(layer).weight.data.copy_(weight)
    return inputs


@pytest.mark.parametrize("inputs", [False, True])
def test_moments_are_those_of_each_lora_alone_on_its_own_images(model, loras, pair, inputs) -> None:
    with model.attach(loras) as adapters:
        steps = few_steps(model, pair, adapters)
        moments = teacher_moments(steps, inputs)
        assert not any(module._forward_pre_hooks for module in adapters.layers.values())
    for k, lora in enumerate(loras):
        draws = [seen(model, lora, step.images[k], step.t) for step in steps]
        for layer, moment in moments.items():
            down = torch.cat([each[layer].down for each in loras])
            rows = torch.cat([x[layer] if inputs else x[layer] @ down.mT for x in draws])
            torch.testing.assert_close(moment[k].float(), rows.mT @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_hooks_are_removed_after_failure(model, loras, pair) -> None:
    with model.attach(loras) as adapters:
        [step] = few_steps(model, pair, adapters, 1)
        with pytest.raises(RuntimeError):
            teacher_moments([replace(step, t=step.t[:1])])
        assert not any(layer._forward_pre_hooks for layer in adapters.layers.values())


CLOSED = [
    ("ziprank_closed", {"basis": "svd"}, "rank", lambda layer: sum(layer.ranks)),
    ("ziprank_closed", {"basis": "raw"}, "rank", lambda layer: sum(layer.ranks)),
    ("ziprank_closed", {"lambda_prior": 0.1}, "rank", lambda layer: sum(layer.ranks)),
    ("ziplora_closed", {"mask_dim": "in"}, "in", lambda layer: 2 * layer.in_features),
    ("ziplora_closed", {"mask_dim": "out"}, "out", lambda layer: 2 * layer.out_features),
]


@pytest.mark.parametrize(("name", "overrides", "kind", "count"), CLOSED)
def test_merge_has_least_local_error(model, loras, pair, name, overrides, kind, count) -> None:
    """The regularized error is below that of ones and of trained masks, for the draws that gave the masks."""
    method: Any = load(name, draws=2, batch=2, ridge=1e-4, **overrides)
    result = merged(model, method, loras, pair)
    assert result.masks is not None and result.losses == {}
    layers = model.layers.adapted(loras, pair.roles)
    assert result.learned_params == sum(count(layer) for layer in layers.values())
    same = {"basis": method.merge.basis} if kind == "rank" else {"mask_dim": kind}
    trained = merged(model, short("ziprank" if kind == "rank" else "ziplora", **same), loras, pair)
    assert trained.masks is not None
    rebased = in_basis(loras, method.merge.basis)
    with model.attach(rebased) as adapters:
        moments = teacher_moments(few_steps(model, pair, adapters), kind == "in")
    for layer in layers:
        error = KINDS[kind]([lora[layer] for lora in rebased], moments[layer])

        prior = method.merge.penalty(layers[layer]) * error.c if "lambda_prior" in overrides else None

        def of(masks, error=error, prior=prior) -> float:
            vectors = [mask.only().double() for mask in masks]
            m = torch.stack(vectors, -1) if kind == "out" else torch.cat(vectors)
            ridge = 1e-4 * error.A.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) * (m - 1).square()
            penalty = prior @ m if prior is not None else 0.0
            return float((error(m).sum() + ridge.sum() + penalty) / error.c.sum())

        ones = tuple(mask.map(torch.ones_like) for mask in result.masks[layer])
        assert of(result.masks[layer]) <= min(of(ones), of(trained.masks[layer])) + 1e-6
        if "lambda_prior" in overrides:
            assert all((mask.only() >= 0).all() for mask in result.masks[layer])


def test_prior_makes_dominant_masks_smaller(model, loras, pair) -> None:
    layers = model.layers.adapted(loras, pair.roles)

    def size(strength: float) -> tuple[float, float]:
        masks = merged(model, load("ziprank_closed", draws=1, batch=2, lambda_prior=strength), loras, pair).masks
        assert masks is not None
        dominant = [masks[name][0 if layer.depth > 0.5 else 1].only().abs() for name, layer in layers.items()]
        return torch.cat(dominant).sum().item(), sum(float((each == 0).float().mean()) for each in dominant)

    weak, strong = size(0.01), size(1.0)
    assert strong[0] < weak[0] and strong[1] > weak[1]


def test_merge_is_repeatable(model, loras, pair) -> None:
    method = load("ziprank_closed", draws=1, batch=1)
    first, again = merged(model, method, loras, pair), merged(model, method, loras, pair)
    assert all(torch.equal(first.file[layer].up, again.file[layer].up) for layer in first.file)


@pytest.mark.parametrize(("name", "overrides"), [each[:2] for each in CLOSED])
def test_merge_takes_more_than_two(model, loras, pair, name, overrides) -> None:
    cat = replace(pair.contents[0], name="cat_1")
    three = replace(pair, contents=(pair.contents[0], cat))
    method = load(name, draws=1, batch=1, **overrides)
    result = merged(model, method, (loras[0], random_lora(model, 4, "cat"), loras[1]), three)
    assert result.masks is not None and all(len(masks) == 3 for masks in result.masks.values())
    assert all(torch.isfinite(mask.only()).all() for masks in result.masks.values() for mask in masks)


@pytest.mark.parametrize("name", ["ziplora_closed", "ziprank_closed", "ssr_merge"])
def test_solved_merge_runs_model_in_precision_of_trainer(model, loras, pair, name) -> None:
    """With bf16-mixed the denoiser computes in bfloat16, and the solution moves by its rounding."""
    seen: dict[str, set[torch.dtype]] = {}
    files: dict[str, Any] = {}
    linear = next(module for module in model.unet.modules() if isinstance(module, torch.nn.Linear))
    for precision in ("32-true", "bf16-mixed"):
        seen[precision] = set()
        hook = linear.register_forward_hook(lambda *hooked, at=precision: seen[at].add(hooked[-1].dtype))
        try:
            trainer = replace(CPU, precision=precision)
            files[precision] = merged(model, load(name), loras, pair, trainer=trainer).file
        finally:
            hook.remove()
    assert seen == {"32-true": {torch.float32}, "bf16-mixed": {torch.bfloat16}}
    full, half = ({layer: each.up @ each.down for layer, each in file.items()} for file in files.values())
    largest = max(float((full[layer] - half[layer]).norm() / full[layer].norm()) for layer in full)
    assert 1e-5 < largest < 0.5
