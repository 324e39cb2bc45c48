"""Best masks with k entries against dense brute force; Theorem 1 in the SVD basis, and its violations."""

from __future__ import annotations

from itertools import combinations, product

import pandas as pd
import pytest
import torch
from torch import Tensor

from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.mask_errors import EXACT_RANK, out_errors, raw_rank_errors, svd_rank_errors
from lorabench.tasks.theorem1 import draw, measure, summary, violations


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(rank: int, outs: int, ins: int, seed: int = 0) -> Factors:
    return Factors(normal(rank, ins, seed=2 * seed), normal(outs, rank, seed=2 * seed + 1))


def low_rank() -> Factors:
    """Return factors of 5 columns with rank 2."""
    return Factors(normal(5, 6), normal(7, 2) @ normal(2, 5, seed=1))


def orthogonal_rows() -> Factors:
    """If rows are singular directions, both errors are equal."""
    up = torch.zeros(9, 4)
    up[[1, 3, 4, 8], [0, 1, 2, 3]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    return Factors(torch.eye(4, 6), up)


def cancelling() -> Factors:
    """Return the update e_1 d as two terms that cancel in another row."""
    return Factors(torch.ones(2, 4), torch.tensor([[1.0, 0.0], [10.0, -10.0], [0.0, 0.0]]))


ADVERSARIAL = {
    "low rank": low_rank(),
    "orthogonal rows": orthogonal_rows(),
    "cancelling": cancelling(),
    "a row": Factors(normal(3, 5), torch.eye(8, 1) @ torch.ones(1, 3)),
    "flat spectrum": Factors(torch.linalg.qr(normal(12, 6)).Q.T, torch.linalg.qr(normal(10, 6)).Q),
    "fewer outputs than ranks": factors(6, 4, 9),
    "fewer inputs than ranks": factors(6, 9, 4),
    "rank 1": factors(1, 5, 7),
    "zero": Factors(torch.zeros(3, 5), normal(6, 3)),
    "a zero term": Factors(torch.cat([torch.zeros(1, 5), normal(2, 5)]), normal(6, 3)),
    "scales apart": Factors(torch.logspace(-6, 6, 5)[:, None] * normal(5, 8), normal(7, 5)),
}
RANDOM = {
    f"random {r}x{o}x{i}": factors(r, o, i, seed) for seed, (r, o, i) in enumerate(product((2, 5, 8), (8, 30), (7, 40)))
}
ALL = {**ADVERSARIAL, **RANDOM}


def dense(each: Factors) -> Tensor:
    return each.up.double() @ each.down.double()


def relative(difference: Tensor, update: Tensor) -> float:
    return float(difference.norm() / update.norm()) if update.norm() else 0.0


def close(ours: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_svd_basis_against_dense_svd(name: str) -> None:
    update, rank = dense(ALL[name]), ALL[name].rank
    values = torch.linalg.svdvals(update)
    close(svd_rank_errors(ALL[name]), [relative(values[k:], values) for k in range(1, rank + 1)])


@pytest.mark.parametrize("name", ALL)
def test_output_masks_against_every_choice_of_rows(name: str) -> None:
    update, rank = dense(ALL[name]), ALL[name].rank
    rows = range(len(update)) if len(update) < 12 else range(0)
    for k, ours in enumerate(out_errors(ALL[name]).tolist(), 1):
        longest = update.norm(dim=1).argsort(descending=True)[:k].tolist()
        for kept in [longest, *combinations(rows, k)]:
            masked = torch.zeros_like(update)
            masked[list(kept)] = update[list(kept)]
            error = relative(update - masked, update)
            assert ours <= error + 1e-7
            if kept is longest:
                assert ours == pytest.approx(error, abs=1e-7)
    assert len(out_errors(ALL[name])) == min(rank, len(update))


@pytest.mark.parametrize("name", ALL)
def test_trained_factors_against_every_subset_of_terms(name: str) -> None:
    each, update = ALL[name], dense(ALL[name])
    terms = torch.stack(
        [torch.outer(u, d).flatten() for u, d in zip(each.up.double().T, each.down.double(), strict=True)], 1
    )
    terms = terms / terms.norm(dim=0).clamp(min=1e-300)  # masks are free: the length of a term is nothing to it
    expected = []
    for k in range(1, each.rank + 1):
        errors = []
        for kept in map(list, combinations(range(each.rank), k)):
            best = torch.linalg.lstsq(terms[:, kept], update.flatten()[:, None], driver="gelsd").solution
            errors.append(relative(terms[:, kept] @ best - update.flatten()[:, None], update))
        expected.append(min(errors))
    close(raw_rank_errors(each), expected)


@pytest.mark.parametrize("name", ALL)
def test_no_violation_in_svd_basis(name: str) -> None:
    e_svd, e_raw, e_out = svd_rank_errors(ALL[name]), raw_rank_errors(ALL[name]), out_errors(ALL[name])
    assert (e_svd[: len(e_out)] <= e_out + 1e-7).all()
    assert (e_svd <= e_raw + 1e-7).all()
    assert e_svd[-1] == e_raw[-1] == 0 or max(e_svd[-1], e_raw[-1]) < 1e-7  # every term kept


def test_equality_for_orthogonal_rows() -> None:
    torch.testing.assert_close(svd_rank_errors(orthogonal_rows()), out_errors(orthogonal_rows()))


def test_trained_factors_can_violate_it_and_another_basis_of_them_does_not() -> None:
    each = cancelling()
    assert out_errors(each)[0] < 1e-7
    assert raw_rank_errors(each)[0] == pytest.approx(0.995, abs=5e-4)  # as in docs/theorem1.md
    torch.testing.assert_close(raw_rank_errors(each.svd()), svd_rank_errors(each), atol=1e-5, rtol=0)


def test_half_rows_can_beat_half_ranks() -> None:
    up = torch.zeros(8, 4)
    up[:4] = torch.eye(4)
    each = Factors(torch.eye(4, 6), up)
    assert out_errors(each)[3] == 0  # 4 of 8 rows
    assert svd_rank_errors(each)[1] == pytest.approx(0.5**0.5)  # 2 of 4 ranks


def test_merge_is_beyond_theorem() -> None:
    """Two output entries reproduce both LoRAs exactly, two rank entries do not (docs/theorem1.md)."""
    v_c, v_s = torch.tensor([1.0, 0.5]), torch.tensor([0.5, 1.0])
    updates = torch.stack([torch.outer(v_c, v_c), torch.outer(v_s, v_s)])
    inputs = torch.eye(2)  # rows: x_c, x_s
    wanted = torch.cat([updates[0] @ inputs[0], updates[1] @ inputs[1]])
    answers = [torch.cat([update @ x for x in inputs]) for update in updates]
    ranks = torch.stack(answers, 1)  # rank 1 each: a rank mask scales the whole update
    best = ranks @ torch.linalg.lstsq(ranks, wanted[:, None]).solution
    assert relative(best[:, 0] - wanted, wanted) == pytest.approx(0.21, abs=5e-3)
    rows = torch.diag(torch.tensor([1.0, 0.0])) @ updates[0] + torch.diag(torch.tensor([0.0, 1.0])) @ updates[1]
    torch.testing.assert_close(torch.cat([rows @ x for x in inputs]), wanted)


def test_above_exact_rank_error_is_upper_bound(monkeypatch) -> None:
    each = factors(8, 20, 12)
    exact = raw_rank_errors(each)
    monkeypatch.setattr("lorabench.merging.mask_errors.EXACT_RANK", 7)
    greedy = raw_rank_errors(each)
    assert (greedy >= exact - 1e-7).all() and greedy[-1] < 1e-6
    torch.testing.assert_close(greedy[0], exact[0])  # the first term is the best one
    assert (greedy[1:-1] < greedy[:-2]).all()
    wide = raw_rank_errors(factors(EXACT_RANK + 6, 60, 50))
    assert wide.isfinite().all() and wide[-1] < 1e-6


def test_study_counts_and_names_violations(tmp_path) -> None:
    layer, other = (f"down_blocks.1.attentions.0.transformer_blocks.0.attn1.{name}" for name in ("to_q", "to_out.0"))
    errors = measure("mug_1", LoRA({layer: cancelling(), other: factors(3, 9, 9)}))
    assert list(errors.columns) == ["layer", "concept", "k", "e_rank_svd", "e_rank_raw", "e_out"]
    assert errors["layer"].value_counts().to_dict() == {layer: 2, other: 3}
    assert len(violations(errors, "e_rank_svd")) == 0
    found = violations(errors, "e_rank_raw")
    assert found[["layer", "k"]].values.tolist() == [[layer, 1]]
    text = summary(errors)
    assert "| SVD basis | 0 | 0.00% | - |" in text and "| trained factors | 1 | 20.00% | 0.9950 |" in text
    assert "by block: down_blocks.1 1" in text and "by projection: attn1.to_q 1" in text and "None." in text
    draw(errors, tmp_path / "theorem1.png")
    assert (tmp_path / "theorem1.png").stat().st_size > 10_000
    assert summary(pd.concat([errors, errors.assign(concept="cat_1")])).startswith("# Theorem 1")
