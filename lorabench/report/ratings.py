"""Mean ratings of table rows by protocols that rate one image at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lorabench.report import papers
from lorabench.report.labels import row_order
from lorabench.report.text import escape, row
from lorabench.report.verdict_text import with_interval
from lorabench.report.verdicts import by_pair

RATINGS = "ratings.parquet"
METRIC = "combination"  # in conf/paper
MEANING = {
    "combination": "share of images that have both the subject and the style (the Combination Score of CRAFT-LoRA)",
    "rubric": "resemblance from 0 to 4 (the scale of DreamBench++)",
}


def rating_lines(ratings: pd.DataFrame, protocol: str) -> Iterator[str]:
    """Yield a Markdown table of the mean rating of each row and question, with its interval over pairs.

    Args:
        ratings: One row per image and question, see `lorabench.tasks.judging`.
    """
    questions = list(dict.fromkeys(ratings["question"]))
    yield f"## Ratings: {MEANING[protocol]}"
    yield ""
    yield row(["row", *questions, "invalid answers"])
    yield "|---|" + "---:|" * (len(questions) + 1)
    for label in row_order(list(dict.fromkeys(ratings["label"]))):
        own = ratings[ratings["label"] == label]
        cells = [mean(own[own["question"] == question]) for question in questions]
        yield row([escape(label), *cells, f"{own['invalid'].sum()} of {own['votes'].sum()}"])
    if protocol == "combination":
        yield ""
        yield from published()


def published() -> Iterator[str]:
    """Yield the published Combination Scores, one sentence per table."""
    for paper in papers.papers().values():
        for table in paper.tables:
            values = [f"{each.name} {each.values[METRIC]:g}" for each in table.rows if METRIC in each.values]
            if values:
                yield f"Published ({paper.title}, {table.name}; other images and prompt): {', '.join(values)}."


def mean(own: pd.DataFrame) -> str:
    """Format the mean rating over pairs with its interval."""
    found = by_pair(own.dropna(subset="value"), "value")
    return with_interval(found.mean, found.low, found.high)
