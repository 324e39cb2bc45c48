"""verdicts.md: accuracy on controls, shares and rankings of a judge or a study, question by question."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pandas as pd

from lorabench.report.ranking import rankings
from lorabench.report.text import escape, row
from lorabench.report.verdicts import ITEM, QUESTIONS, accuracy, in_order, shares
from lorabench.scoring.judges.answers import PAIR_OPTIONS, parse

ASKED = {
    "subject": "Which image shows the subject better?",
    "style": "Which image has the style better?",
    "both": "Which image combines subject and style better?",
}
UNKNOWN = "no controls"


def write_verdicts(verdicts: pd.DataFrame, title: str, notes: list[str]) -> str:
    """Return the Markdown page of all verdicts of one judge or study.

    Args:
        verdicts: Rows as in `lorabench.report.verdicts`.
        notes: Sentences for the end of the page.
    """
    right, ranked = accuracy(verdicts), rankings(verdicts)
    parts = [f"# {title}", controls(right)]
    table = shares(verdicts)
    for question in (name for name in QUESTIONS if not table.empty and name in set(table["question"])):
        known = known_share(right, question)
        parts += [f"## {ASKED[question]}", "\n".join(share_lines(table[table["question"] == question], known))]
        parts.append("\n".join(ranking_lines(ranked[ranked["question"] == question], known)))
    return "\n\n".join([*parts, *notes, *remarks(verdicts)]) + "\n"


def controls(right: pd.DataFrame) -> str:
    """Return the sentence on accuracy on controls."""
    if right.empty:
        return "There are no controls: nothing here shows how far these answers can be trusted."
    known = in_order(right.reset_index())
    results = [
        f"{line.question} {line.right} of {line.count} ({line.share:.2f})" for line in known.itertuples(index=False)
    ]
    return f"Right on controls, whose answer is known: {', '.join(results)}."


def known_share(right: pd.DataFrame, question: str) -> str:
    """Format the share of right controls of a question; UNKNOWN without controls."""
    return f"{right.at[question, 'share']:.2f}" if question in right.index else UNKNOWN


def share_lines(table: pd.DataFrame, known: str) -> Iterator[str]:
    """Yield the lines of the table of shares."""
    yield row(["a", "b", "a better", "tie", "b better", "invalid", "share of a", "right on controls"])
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for line in table.to_dict("records"):
        counts = [str(line[name]) for name in ("wins", "ties", "losses", "invalid")]
        share = with_interval(line["share"], line["low"], line["high"])
        yield row([escape(line["a"]), escape(line["b"]), *counts, share, known])


def ranking_lines(table: pd.DataFrame, known: str) -> Iterator[str]:
    """Yield the lines of the ranking."""
    yield row(["rank", "row", "strength", "right on controls"])
    yield "|---:|---|---:|---:|"
    for line in table.to_dict("records"):
        rank = "" if pd.isna(line["rank"]) else f"{line['rank']:.0f}"
        yield row([rank, escape(line["label"]), with_interval(line["strength"], line["low"], line["high"]), known])


def with_interval(value: float, low: float, high: float) -> str:
    """Format a value with its interval; "" if there is no value."""
    if pd.isna(value):
        return ""
    return f"{value:.2f}" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")


def remarks(verdicts: pd.DataFrame) -> Iterator[str]:
    """Yield the sentences on how the tables were computed, and on positions and invalid answers."""
    pairs = verdicts.loc[verdicts["kind"] == ITEM, ["dataset", "content", "style"]].drop_duplicates()
    yield (
        f"{len(pairs)} pairs of a subject and a style. Shares count a tie as half a win and leave invalid answers out. "
        "Strengths are Bradley-Terry's (natural logarithm, mean 0). Intervals: 95 %, from resampled pairs (subjects "
        "and styles, if several pairs share them); one without width means that all pairs agree, not that it is exact."
    )
    if (text := positions(verdicts)) is not None:
        yield text
    if count := int((verdicts["answer"] == "invalid").sum()):
        yield f"{count} of {len(verdicts)} verdicts are invalid: the answer did not have the required form."


def positions(verdicts: pd.DataFrame) -> str | None:
    """Return the sentence on how answers depend on the order of the images; None if each was shown in one order."""
    both = [known for text in verdicts["raw"] if {"ab", "ba"} <= (known := json.loads(text)).keys()]
    read = [[parse(known[order], PAIR_OPTIONS) for order in ("ab", "ba")] for known in both]
    valid = [pair for pair in read if None not in pair]
    chosen = [token for pair in valid for token in pair if token != "TIE"]
    if not chosen:
        return None
    first = sum(token == "A" for token in chosen)
    same = sum(pair in (["A", "A"], ["B", "B"]) for pair in valid)
    return (
        f"Each question was asked in both orders, and answers that disagree are a tie. The image shown first won "
        f"{first} of {len(chosen)} answers without a tie ({first / len(chosen):.0%}); in {same} of {len(valid)} cases "
        "the answer followed the position instead of the image."
    )
