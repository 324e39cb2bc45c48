"""Scores of LoRA recipes (task=recipe), and the text about them.

    content as asked(image) = subject_r1(image) * ground_acc(image)    photographs by a content LoRA
    style as asked(image)   = style_r1(image) * class_acc(image)       drawings by a style LoRA

The better recipe has the greater mean of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan

import pandas as pd

from lorabench.data.concepts import ROLES, Role
from lorabench.report import averages, protocols, stats
from lorabench.report.headline import joined
from lorabench.report.text import row
from lorabench.report.uses import other_scores

ASKED: dict[Role, tuple[str, str]] = {"content": ("subject_r1", "ground_acc"), "style": ("style_r1", "class_acc")}
LINE = ("recipe", "score", "mean", "low", "high", "difference", "difference_low", "difference_high")


def as_asked(role: Role) -> str:
    """Return the name of the score of a role that recipes are chosen by."""
    return f"{role} as asked"


def with_asked(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the rows of `content as asked` and `style as asked`, and name all metrics with the use of their images.

    Args:
        scores: Rows of scores with the columns `label` and `use`, of images of one role by itself.
    """
    found = [other_scores(scores)]
    for role, metrics in ASKED.items():
        own = scores[scores["use"] == role]
        right, fits = (own[own["metric"] == metric] for metric in metrics)
        found += joined(right, fits, as_asked(role), lambda values: values.prod(axis=1))
    return pd.concat(found, ignore_index=True)


def recipe_lines(scores: pd.DataFrame, shown: Sequence[str]) -> pd.DataFrame:
    """Return one line per recipe and score, with the columns LINE; differences are to the first recipe.

    Args:
        scores: Result of `with_asked`.
        shown: Scores besides those of ASKED.
    """
    wanted = [*map(as_asked, ROLES), *shown]
    by_name = {column.name: column for column in protocols.columns(protocols.ALL, scores)[0]}
    by_label = dict(iter(scores.groupby("label", sort=False)))
    lines = []
    for name in [each for each in wanted if each in by_name]:
        column = by_name[name]
        images = {label: protocols.image_values(own, column) for label, own in by_label.items()}
        first = next(iter(images.values()))
        for label, values in images.items():
            at, apart = over_names(values["value"]), over_names((values["value"] - first["value"]).dropna())
            lines.append((label, name, at.mean, at.low, at.high, apart.mean, apart.low, apart.high))
    return pd.DataFrame(lines, columns=list(LINE))


def over_names(values: pd.Series) -> stats.Interval:
    """Return the mean of images by averages.UNIT, with an interval over subjects or styles.

    Each of them is in one pair. The other name of a pair is only in the prompt, so that pairs that share it are
    independent.
    """
    return stats.interval(averages.pair_values(pd.DataFrame({"value": values, "count": 1}))["value"])


def best(lines: pd.DataFrame) -> str:
    """Return the recipe with the greatest mean of `content as asked` and `style as asked`; of equal ones the first."""
    chosen = lines[lines["score"].isin(list(map(as_asked, ROLES)))]
    means = chosen.groupby("recipe", sort=False)["mean"].mean().round(12)
    return str(means.idxmax())


def write_recipes(lines: pd.DataFrame, costs: Mapping[str, Mapping[str, float]], names: str) -> str:
    """Return the text of recipe.md.

    Args:
        lines: Result of `recipe_lines`.
        costs: `images` that a training draws and `seconds` of one, by recipe.
        names: Numbers of subjects and styles, in words.
    """
    text = [*table(lines, costs), ""]
    spans = ", with 95 % intervals over them" if len(costs) == 1 else ""
    text.append(
        f"Means over {names}, each drawn by its own LoRA only{spans}. content as asked: share of photographs that show "
        "the subject on the ground in the prompt. style as asked: share of drawings in the style of an object of the "
        "class in the prompt. In parentheses: difference to the first recipe with its 95 % interval. Images: drawn in "
        "a training, with those of the prior. Seconds: mean of a training, measured while others ran beside it."
    )
    if len(costs) > 1:
        text += ["", f"Best by the mean of both: `{best(lines)}`."]
    return "\n".join([*text, ""])


def table(lines: pd.DataFrame, costs: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield the lines of the table of recipes."""
    scores = list(dict.fromkeys(lines["score"]))
    yield row(["recipe", *scores, "images", "seconds"])
    yield "|---|" + "---:|" * (len(scores) + 2)
    first = lines["recipe"].iloc[0]
    for recipe, own in lines.groupby("recipe", sort=False):
        cells = []
        for line in own.to_dict("records"):
            text = f"{line['mean']:.3f}"
            if len(costs) == 1 and not isnan(line["low"]):
                text += f" [{line['low']:.2f}, {line['high']:.2f}]"
            if recipe != first and line["score"] in map(as_asked, ROLES):
                ends = f"{line['difference_low']:+.2f}, {line['difference_high']:+.2f}"
                text += f" ({line['difference']:+.3f} [{ends}])"
            cells.append(text)
        cost = costs[str(recipe)]
        yield row([f"`{recipe}`", *cells, f"{cost['images']:.0f}", f"{cost['seconds']:.0f}"])
