"""Verdicts of judges and of people, in one table: one row per comparison of two images and question.

    dataset, world, content, style, prompt, seed, image   the pair, and the image within it
    question    subject, style or both: which image is better in this respect?
    a, b        labels of the two table rows
    kind        item, control (the answer is known) or repeat (shown again to the same person)
    expected    "a" or "b" of a control, else ""
    answer      "a", "b", "tie" or "invalid"
    source      judge or person
    rater       name of the judge or the participant
    prompt_hash of the judge's questions, "" of people
    raw         JSON: the judge's texts, or how a question was shown to a person

Everything here is a view of these rows. Shares count a tie as half a win. Invalid answers are in no share; they are
counted and shown. Intervals resample pairs as those of scores do (`lorabench.report.clusters`).
"""

from __future__ import annotations

import pandas as pd

from lorabench.report import averages, stats

FILE = "verdicts.parquet"
KEYS = ["dataset", "world", "content", "style", "prompt", "seed", "image"]
COLUMNS = [
    *KEYS, "question", "a", "b", "kind", "expected", "answer", "source", "rater", "prompt_hash", "raw",
]  # fmt: skip
QUESTIONS = ("subject", "style", "both")  # in the order of tables
POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}
ITEM, CONTROL, REPEAT = "item", "control", "repeat"


def items(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that count in shares and rankings: no controls, no repeats, no invalid answers; with `points`."""
    counted = verdicts[(verdicts["kind"] == ITEM) & verdicts["answer"].isin(POINTS)]
    return counted.assign(points=counted["answer"].map(POINTS).astype(float))


def accuracy(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return `right`, `count` and `share` by question, of the controls; a tie or an invalid answer is not right."""
    controls = verdicts[verdicts["kind"] == CONTROL]
    right = (controls["answer"] == controls["expected"]).groupby(controls["question"])
    found = pd.DataFrame({"right": right.sum().astype(int), "count": right.size()})
    return found.assign(share=found["right"] / found["count"])


def shares(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return one row per question and two table rows a, b: wins, ties, losses, invalid, and the share of a.

    Columns: question, a, b, wins, ties, losses, invalid, share, low, high, pairs.
    """
    found = []
    every = verdicts[verdicts["kind"] == ITEM]
    for (question, a, b), own in every.groupby(["question", "a", "b"], sort=False):
        counted = items(own)
        counts = own["answer"].value_counts()
        mean = by_pair(counted, "points")
        found.append(
            {
                "question": question, "a": a, "b": b, "wins": counts.get("a", 0), "ties": counts.get("tie", 0),
                "losses": counts.get("b", 0), "invalid": counts.get("invalid", 0), "share": mean.mean,
                "low": mean.low, "high": mean.high, "pairs": mean.pairs,
            }
        )  # fmt: skip
    table = pd.DataFrame(found)
    return table if table.empty else in_order(table)


def by_pair(rows: pd.DataFrame, column: str) -> stats.Interval:
    """Return the mean over pairs of the means of a column, with its interval."""
    means = pd.Series(rows.groupby(averages.PAIR)[column].mean())
    return stats.over_pairs(means)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its questions in the order of QUESTIONS; other rows keep their order."""
    return table.sort_values("question", key=lambda names: names.map(QUESTIONS.index), kind="stable", ignore_index=True)
