"""Text and figure of a sensitivity study (lorabench/report/sensitivity.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lorabench.report.figures import INK, MUTED, RULE
from lorabench.report.plot_style import default_style
from lorabench.report.sensitivity import PAIRS, POWER

COLORS = ("#3557d6", "#c4541b", "#2f8f5b", "#8a4fbf", "#a08000", "#6a6c76")


def write_sensitivity(
    response: pd.DataFrame, smallest: pd.DataFrame, nulls: pd.DataFrame, limits: pd.DataFrame, pairs: str, images: int,
    like: Sequence[tuple[str, str]], unlike: Sequence[str], shown: Sequence[str],
) -> str:  # fmt: skip
    """Return the text of sensitivity.md.

    Args:
        response: Result of `dose_response`.
        smallest: Result of `smallest_dose`.
        nulls: Result of `null_rates`.
        limits: Result of `detectable`.
        pairs: Number of pairs with those of subjects and styles, in words.
        images: Images per pair.
        like: Labels of the compared rows of a kind.
        unlike: Names of the unlike methods.
        shown: Scores in the table of known damage.
    """
    return "\n".join(
        [
            "## Known damage",
            "",
            *response_table(response, shown),
            "",
            f"Mean difference to the direct merge over {pairs}, {images} images each, with 95 % intervals. `~`: p is "
            "above 5 % after Holm's correction over the doses of a kind. Other scores are in sensitivity.csv. energy: "
            "share of the energy of each update of the denoiser that is removed at random. content weight, style "
            "weight: 1 - scale of that LoRA.",
            "",
            "## Smallest separated dose",
            "",
            *smallest_table(smallest),
            "",
            "The smallest dose that is separated together with all greater ones; -: none is.",
            "",
            *independent_parts(nulls, limits, like, unlike),
        ]
    )


def independent_parts(
    nulls: pd.DataFrame, limits: pd.DataFrame, like: Sequence[tuple[str, str]], unlike: Sequence[str]
) -> list[str]:
    """Return the lines on false and on detectable differences, which need independent pairs."""
    if nulls.empty:
        return ["False and detectable differences are measured on independent pairs: use dataset.pairs=matched.", ""]
    return [
        "## False differences",
        "",
        *null_table(nulls),
        "",
        f"Share of {int(nulls['splits'].max())} splits of two seeds of the direct merge (other noise, other LoRAs) "
        "that have p <= 5 %; 5 % is promised.",
        "",
        "## Detectable differences",
        "",
        *limit_table(limits),
        "",
        f"The difference that a t test at 5 % finds with a probability of {POWER:.0%}, by number of pairs, from "
        "the standard deviation (sd) of differences over pairs. small damage: the direct merge and the same with "
        "little energy removed. like: methods of a kind: "
        f"{', '.join(f'{one} and {other}' for one, other in like)}. unlike: the direct merge and {', '.join(unlike)}. "
        "another seed: two seeds of the direct merge. needed: pairs for the target.",
        "",
    ]


def response_table(
    response: pd.DataFrame, shown: Sequence[str], kind: str = "damage", dose: str = "dose"
) -> Iterator[str]:
    """Yield the lines of a table of differences, one per dose.

    Args:
        response: Result of `dose_response`.
        shown: Scores that have a column.
        kind: Head of the first column.
        dose: Head of the second column.
    """
    doses = pd.DataFrame(response[["kind", "dose"]]).drop_duplicates()
    scores = [each for each in shown if each in set(response["score"])]
    yield f"| {kind} | {dose} | {' | '.join(scores)} |"
    yield f"|---|---:|{'---:|' * len(scores)}"
    lines = response.set_index(["kind", "dose", "score"])
    for of, at in doses.itertuples(index=False):
        cells = []
        for score in scores:
            line = lines.loc[(of, at, score)]
            span = "" if np.isnan(line["low"]) else f" [{line['low']:+.3f}, {line['high']:+.3f}]"
            cells.append(f"{line['difference']:+.3f}{span}{'' if line['separated'] else ' ~'}")
        yield f"| {of} | {at:g} | {' | '.join(cells)} |"


def smallest_table(smallest: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of the table of smallest separated doses."""
    kinds = list(dict.fromkeys(smallest["kind"]))
    yield f"| score | {' | '.join(kinds)} |"
    yield f"|---|{'---:|' * len(kinds)}"
    for score, own in smallest.groupby("score", sort=False):
        found = own.set_index("kind")["dose"]
        cells = ["-" if np.isnan(found[kind]) else f"{found[kind]:g}" for kind in kinds]
        yield f"| {score} | {' | '.join(cells)} |"


def null_table(nulls: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of the table of false differences."""
    counts = sorted(set(nulls["pairs"]))
    yield f"| score | {' | '.join(f'{count} pairs' for count in counts)} |"
    yield f"|---|{'---:|' * len(counts)}"
    for score, own in nulls.groupby("score", sort=False):
        rates = own.set_index("pairs")["rate"]
        yield f"| {score} | {' | '.join(f'{rates[count]:.1%}' for count in counts)} |"


def limit_table(limits: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of the table of detectable differences."""
    yield f"| score | rows | sd | {' | '.join(f'{count} pairs' for count in PAIRS)} | target at 32 | needed |"
    yield f"|---|---|---:|{'---:|' * (len(PAIRS) + 2)}"
    for row in limits.to_dict("records"):
        cells = [f"{row['sd']:.3f}", *(f"{row[str(count)]:.3f}" for count in PAIRS)]
        cells += ["" if np.isnan(row["target"]) else f"{row['target']:.2f}"]
        cells += ["" if np.isnan(row["pairs_needed"]) else f"{row['pairs_needed']:.0f}"]
        yield f"| {row['score']} | {row['rows']} | {' | '.join(cells)} |"


@default_style()
def draw_response(response: pd.DataFrame, scores: Sequence[str], path: Path) -> None:
    """Plot the difference to the undamaged merge against the dose, one panel per kind.

    Kinds with a single dose are left out if there are others.
    """
    from matplotlib.figure import Figure

    counts = response.groupby("kind", sort=False)["dose"].nunique()
    kinds = list(counts.index[counts > 1]) or list(counts.index)
    figure = Figure(figsize=(4.2 * len(kinds), 3.6), layout="constrained", facecolor="white")
    panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
    for panel, kind in zip(panels, kinds, strict=True):
        for color, score in zip(COLORS, scores, strict=False):
            own = response.query("kind == @kind and score == @score").sort_values("dose")
            panel.fill_between(own["dose"], own["low"], own["high"], color=color, alpha=0.13, linewidth=0)
            panel.plot(own["dose"], own["difference"], color=color, linewidth=1.4, label=score)
            filled = own["separated"].to_numpy()
            for chosen, face in ((filled, color), (~filled, "white")):
                panel.plot(
                    own["dose"][chosen], own["difference"][chosen], "o", markersize=5, color=color, markerfacecolor=face
                )
        panel.axhline(0, color=MUTED, linewidth=0.8)
        panel.set_xlabel(kind, color=INK)
        panel.grid(axis="y", color=RULE, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("difference to the direct merge", color=INK)
    panels[-1].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=160, metadata={"Software": None})
