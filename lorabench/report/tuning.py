"""Text and tables of task=tuning: the chosen configurations, and each method at published and at tuned settings.

Two families of comparisons with the reference are tested separately, one for published and one for tuned settings, and
a third one compares each tuned method with its published one. Holm's correction is made within each family and score.
A method whose published configuration was chosen has one row for both, so nothing is tested between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from lorabench.report import planned, protocols, stats
from lorabench.report.headline import BOTH, SIMILARITY

TUNED = "tuned"
DIFFERENCE = ("difference", "difference_low", "difference_high", "p_holm", "separated")
SAME: dict[str, Any] = dict.fromkeys(DIFFERENCE, np.nan) | {"difference": 0.0}  # difference between a row and itself


class Configuration(Protocol):
    """A method with values of some of its settings; see lorabench/tasks/tuning.py."""

    @property
    def method(self) -> str: ...
    @property
    def words(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def is_published(self) -> bool: ...


def means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of every score (column) by label."""
    columns, _ = protocols.columns(protocols.ALL, scores)
    found = {}
    for label, own in scores.groupby("label", sort=False):
        values = {column.name: protocols.image_values(own, column) for column in columns}
        found[label] = {
            column.name: stats.mean(values[column.name], *column.rule).mean
            for column in columns
            if len(values[column.name])
        }
    return pd.DataFrame.from_dict(found, orient="index")


def development_scores(scores: pd.DataFrame, tried: Sequence[Configuration]) -> pd.DataFrame:
    """Return one row per configuration: method, settings, published, chosen, and the mean of every score.

    Args:
        scores: Scores of the development pairs, with the headline scores.
        tried: The configurations, in the order in which equal ones are preferred.
    """
    mean = means(scores)
    rows = [{"method": each.method, "settings": each.words, "published": each.is_published, **mean.loc[each.label]}
            for each in tried]  # fmt: skip
    found = pd.DataFrame(rows)
    found.insert(3, "chosen", False)
    by = criteria(found)
    for _, own in found.groupby("method", sort=False):
        order = pd.DataFrame(own[by]).round(12).sort_values(by=by, ascending=False, kind="stable")
        found.loc[order.index[0], "chosen"] = True
    return found


def criteria(found: pd.DataFrame) -> list[str]:
    """Return the scores that configurations are chosen by, the first one first."""
    return [score for score in (BOTH, SIMILARITY) if score in found]


def chosen_settings(found: pd.DataFrame) -> dict[str, str]:
    """Return the chosen settings by method, given the result of `development_scores`."""
    chosen = found[found["chosen"]]
    return dict(zip(chosen["method"], chosen["settings"], strict=True))


def scores_by_steps(scores: pd.DataFrame, labels: Mapping[str, tuple[str, int]]) -> pd.DataFrame:
    """Return one row per method and number of optimizer steps with the mean of every score.

    Args:
        scores: Scores of the development pairs.
        labels: Method and steps by label.
    """
    mean = means(scores)
    return pd.DataFrame(
        [{"method": name, "steps": count, **mean.loc[label]} for label, (name, count) in labels.items()]
    )


def compared(scores: pd.DataFrame, names: Sequence[str], reference: str) -> pd.DataFrame:
    """Return one row per method and score with both means, their difference, and the differences to the reference.

    Args:
        scores: Scores of the evaluation pairs. A tuned method has the label "<method> tuned", and none if it is as
            published.
        names: The methods.
        reference: Label of the reference row.
    """
    columns, _ = protocols.columns(protocols.ALL, scores)
    by_label = dict(iter(scores.groupby("label", sort=False)))
    shown = [reference, *(label for name in names for label in (name, f"{name} {TUNED}") if label in by_label)]
    lines = []
    for column in columns:
        images = {label: protocols.image_values(by_label[label], column) for label in shown}
        first = tested(planned.planned_lines(images, column, reference))
        after = {name: images.get(f"{name} {TUNED}", images[name]) for name in names}
        second = tested(planned.planned_lines({reference: images[reference], **after}, column, reference))
        for name in after:
            line: dict[str, Any] = {"method": name, "score": column.name}
            for state, own in (("published", images[name]), (TUNED, after[name])):
                at = stats.mean(own, *column.rule)
                line |= {state: at.mean, f"{state}_low": at.low, f"{state}_high": at.high}
            line |= first.get((f"{name} {TUNED}", name), SAME)
            line |= {f"published_{key}": value for key, value in first[name, reference].items()}
            line |= {f"tuned_{key}": value for key, value in second[name, reference].items()}
            lines.append(line)
    return pd.DataFrame(lines, columns=None if lines else ["method", "score"])  # empty if all methods failed


def tested(comparisons: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the difference of each planned comparison by (label, against); published orders are other families."""
    own = comparisons.drop_duplicates(["label", "against"])
    return {(line["label"], line["against"]): {key: line[key] for key in DIFFERENCE}
            for line in own.to_dict("records")}  # fmt: skip


def write_tuning(
    lines: pd.DataFrame,
    chosen: Mapping[str, str],
    found: pd.DataFrame,
    steps: pd.DataFrame,
    shown: Sequence[str],
    pairs: str,
    development: int,
    failed: Mapping[str, str],
) -> str:
    """Return the text of tuning.md.

    Args:
        lines: Result of `compared`.
        chosen: Chosen settings by method.
        found: Result of `development_scores`.
        steps: Result of `scores_by_steps`.
        shown: Scores to show.
        pairs: The evaluation pairs, in words.
        development: Number of development pairs.
        failed: Reasons of configurations that failed, by label.
    """
    published, by = set(found.loc[found["chosen"] & found["published"], "method"]), criteria(found)
    text = []
    for score in [each for each in shown if each in set(lines["score"])]:
        own = lines.loc[lines["score"] == score]
        text += [f"## {score}", "", *comparison_table(own, chosen, published), "", separated_note(own, score), ""]
    text += [
        f"Mean over {pairs}, with 95 % intervals. Settings were chosen by {', then '.join(f'`{each}`' for each in by)} "
        f"on {development} development pairs, whose names are not in this table. `~`: p is above 5 % after Holm's "
        "correction within the column. configurations.csv has the scores of all configurations, chosen.yaml the "
        "settings.",
        "",
    ]
    if failed:
        text += ["Left out because they failed:", "", *(f"- {label}: {why}" for label, why in failed.items()), ""]
    if len(steps):
        text += ["## Score against steps", "", *step_table(steps, shown), ""]
        text += [f"Learned merges at their chosen settings, mean over the {development} development pairs.", ""]
    return "\n".join(text)


def comparison_table(own: pd.DataFrame, chosen: Mapping[str, str], published: set[str]) -> Iterator[str]:
    """Yield the lines of the table of one score."""
    yield "| method | published | tuned | tuned - published | published - direct | tuned - direct | settings |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for line in own.to_dict("records"):
        name = line["method"]
        cells = [f"`{name}`", *(mean(line, state) for state in ("published", TUNED))]
        cells += [difference(line, start) for start in ("", "published_", "tuned_")]
        yield f"| {' | '.join(cells)} | {'as published' if name in published else f'`{chosen[name]}`'} |"


def mean(line: Mapping[str, Any], state: str) -> str:
    """Format a mean with its interval."""
    low, high = line[f"{state}_low"], line[f"{state}_high"]
    return f"{line[state]:.3f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def difference(line: Mapping[str, Any], start: str) -> str:
    """Format a difference with its interval; empty if there is a single pair, or one row for both."""
    value, low, high, _, separated = (line[f"{start}{key}"] for key in DIFFERENCE)
    return "" if np.isnan(low) else f"{value:+.3f} [{low:+.2f}, {high:+.2f}]" + (" ~" if separated is False else "")


def separated_note(own: pd.DataFrame, score: str) -> str:
    """Return how many methods are separated from the reference, in which direction, before and after tuning."""
    parts = []
    for state in ("published", TUNED):
        apart = own.loc[own[f"{state}_separated"].eq(True), f"{state}_difference"]
        parts.append(f"{(apart > 0).sum()} above and {(apart < 0).sum()} below at {state} settings")
    return f"Separated from `direct` in {score}, of {len(own)} methods: {'; '.join(parts)}."


def step_table(steps: pd.DataFrame, shown: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table of scores against steps."""
    scores = [each for each in shown if each in steps]
    yield f"| method | steps | {' | '.join(scores)} |"
    yield f"|---|---:|{'---:|' * len(scores)}"
    for row in steps.to_dict("records"):
        yield f"| `{row['method']}` | {row['steps']} | {' | '.join(f'{row[each]:.3f}' for each in scores)} |"
