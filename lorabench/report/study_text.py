"""study_results.md: preferences, agreement and participants of a user study, and published studies."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lorabench.report import papers
from lorabench.report.agreement import alpha
from lorabench.report.text import escape, row
from lorabench.report.verdict_text import write_verdicts
from lorabench.report.verdicts import QUESTIONS


def write_results(verdicts: pd.DataFrame, people: pd.DataFrame, passes: float) -> str:
    """Return the Markdown page of a study.

    Args:
        verdicts: Answers of all participants.
        people: Result of `participants`.
        passes: Smallest share of right controls.
    """
    passed = people.loc[people["passed"], "participant"]
    counted = verdicts[verdicts["rater"].isin(passed)]
    left_out = people.loc[~people["passed"], "participant"].tolist()
    notes = [agreement(counted), "## Participants", "\n".join(participant_lines(people)), excluded(left_out, passes)]
    title = f"User study, {len(passed)} participants, {len(counted)} answers"
    return write_verdicts(counted, title, [*notes, "## Published studies", "\n".join(published_lines()), PUBLISHED])


PUBLISHED = (
    "Percent, as printed. The images, the questions and the participants are other ones, so these numbers can be "
    "compared within a row of that table only. None has an interval that allows for images of the same pair."
)


def agreement(verdicts: pd.DataFrame) -> str:
    """Return the sentence on agreement, by question."""
    found = {
        name: alpha(verdicts[verdicts["question"] == name]) for name in QUESTIONS if name in set(verdicts["question"])
    }
    alphas = [f"{name} {'not defined' if value is None else f'{value:.2f}'}" for name, value in found.items()]
    return (
        f"Krippendorff's alpha (nominal; 1 is perfect agreement, 0 is chance): {', '.join(alphas) or 'not defined'}. "
        "It is not defined without two answers to one comparison, or if all answers are the same."
    )


def participant_lines(people: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of the table of participants."""
    yield row(["participant", "answers", "right on controls", "same again", "left image", "seconds per answer", ""])
    yield "|---|---:|---:|---:|---:|---:|---|"
    for each in people.to_dict("records"):
        cells = [
            escape(each["participant"]), str(each["answers"]), f"{each['right']} of {each['controls']}",
            f"{each['same']} of {each['repeats']}", f"{each['left']:.0%}", f"{each['seconds']:.1f}",
            "" if each["passed"] else "left out",
        ]  # fmt: skip
        yield row(cells)


def excluded(names: list[str], passes: float) -> str:
    """Return the sentence on participants whose answers do not count."""
    if not names:
        return f"Every participant is right on at least {passes:.0%} of the controls."
    listed = ", ".join(map(escape, names))
    return f"Left out of all tables above, with fewer than {passes:.0%} of the controls right: {listed}."


def published_lines() -> Iterator[str]:
    """Yield a table of the studies in conf/paper."""
    yield row(["publication", "study", "row", "percent"])
    yield "|---|---|---|---|"
    for paper in papers.papers().values():
        for table in (table for table in paper.tables if table.study):
            for line in table.rows:
                values = ", ".join(f"{name} {value:g}" for name, value in line.values.items())
                yield row([escape(each) for each in (paper.title, f"{table.name}: {table.about}", line.name, values)])
