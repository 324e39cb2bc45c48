"""Bradley-Terry rankings and shares of verdicts, against likelihoods and counts by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from lorabench.report import ranking
from lorabench.report.verdicts import accuracy, shares

LABELS = ("direct", "ties", "duolora", "svd")


def verdict(a: str, b: str, answer: str, pair: int = 0, kind: str = "item", question: str = "both") -> dict:
    place = {"dataset": "d", "content": f"c{pair}", "style": "s", "prompt": "p", "seed": 0, "image": 0}
    return {**place, "question": question, "a": a, "b": b, "kind": kind, "expected": "", "answer": answer, "raw": "{}"}


def sampled(strength: dict[str, float], pairs: int, each: int, ties: float = 0.2) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for pair in range(pairs):
        for a, b in combinations(strength, 2):
            for _ in range(each):
                wins = rng.random() < 1 / (1 + np.exp(strength[b] - strength[a]))
                rows.append(verdict(a, b, "tie" if rng.random() < ties else "a" if wins else "b", pair))
    return pd.DataFrame(rows)


def test_strengths_maximize_likelihood() -> None:
    wins = np.array([[0, 3.5, 6], [1.5, 0, 2], [1, 4, 0]])
    played = (wins + wins.T > 0).astype(float)

    def loss(s: np.ndarray) -> float:
        return float(((wins + 0.5 * played) * np.log1p(np.exp(s[None, :] - s[:, None]))).sum())

    best = minimize(loss, np.zeros(3), tol=1e-12).x
    assert ranking.strengths(wins, played) == pytest.approx(best - best.mean(), abs=1e-4)


def test_true_strengths_are_found() -> None:
    true: dict[str, float] = dict(zip(LABELS, (0.0, 0.5, 1.0, -1.5), strict=True))
    found = ranking.rankings(sampled(true, pairs=12, each=40, ties=0.0)).set_index("label")
    assert found["rank"].to_dict() == {"duolora": 1, "ties": 2, "direct": 3, "svd": 4}
    assert found["strength"].to_dict() == pytest.approx(true, abs=0.25)
    assert (found["low"] < found["strength"]).all() and (found["strength"] < found["high"]).all()
    assert (found["high"] - found["low"]).max() < 0.8 and set(found["pairs"]) == {12}


def test_ties_are_half_wins() -> None:
    tied = pd.DataFrame([verdict("x", "y", "tie", pair) for pair in range(4)])
    split = pd.DataFrame([verdict("x", "y", "a" if pair % 2 else "b", pair) for pair in range(4)])
    for rows in (tied, split):
        assert ranking.rankings(rows)["strength"].tolist() == pytest.approx([0, 0])
        assert shares(rows)["share"].tolist() == [0.5]


def test_row_that_always_wins_has_finite_strength() -> None:
    found = ranking.rankings(pd.DataFrame([verdict("x", "y", "a", pair) for pair in range(6)]))
    assert found["label"].tolist() == ["x", "y"]
    assert found["strength"].tolist() == pytest.approx([np.log(13) / 2, -np.log(13) / 2], abs=1e-4)


def test_rows_never_compared_have_no_strength() -> None:
    rows = pd.DataFrame([verdict("w", "x", "a"), verdict("y", "z", "b", 1)])
    assert ranking.rankings(rows)["strength"].isna().all()


def test_one_pair_has_no_interval() -> None:
    found = ranking.rankings(pd.DataFrame([verdict("x", "y", "a")] * 3))
    assert found["strength"].notna().all() and found["low"].isna().all()


def test_shares_weigh_pairs_equally() -> None:
    rows = [verdict("x", "y", "a", 0)] * 9 + [verdict("x", "y", "b", 1)]
    [line] = shares(pd.DataFrame(rows)).to_dict("records")
    assert (line["wins"], line["losses"], line["share"], line["pairs"]) == (9, 1, 0.5, 2)


def test_controls_and_repeats_do_not_count() -> None:
    rows = [verdict("x", "y", "a"), verdict("x", "y", "b", kind="repeat")]
    rows += [{**verdict("o", "x", answer, kind="control"), "expected": "a"} for answer in ("a", "tie", "invalid")]
    found = pd.DataFrame(rows)
    assert shares(found)["share"].tolist() == [1.0]
    assert accuracy(found).loc["both"].tolist() == pytest.approx([1, 3, 1 / 3])
