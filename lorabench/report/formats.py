"""Text of the cells of a table: scores, differences, ranks, costs and numbers of publications."""

from __future__ import annotations

from math import isnan

import pandas as pd

from lorabench.report.published import Published
from lorabench.report.table import PEAKS


def format_score(line: dict | None) -> str:
    """Format a mean with its interval."""
    if line is None:
        return ""
    mean, low, high = (f"{line[part]:.{line['digits']}f}" for part in ("mean", "low", "high"))
    text = mean if isnan(line["low"]) else f"{mean} [{low}, {high}]"  # a single pair has no interval
    return text + (" ~" if line.get("separated") is False else "")


def format_difference(line: dict | None) -> str:
    """Format a difference with its interval and, if it does not cover the whole row, the number of pairs or images."""
    if line is None or isnan(line["shared_pairs"]):
        return ""
    if isnan(line["difference"]):
        return f"- ({shared(line)})" if shared(line) else ""
    ends = ("difference", "difference_low", "difference_high")
    mean, low, high = (f"{line[part]:+.{line['digits']}f}" for part in ends)
    over = f" ({shared(line)})" if shared(line) else ""
    return f"{mean} [{low}, {high}]" + (" ~" if line["separated"] is False else "") + over


def shared(line: dict) -> str:
    """Return the number of pairs or images that a difference covers, or "" if it covers the whole row."""
    for unit in ("pairs", "images"):
        if line[f"shared_{unit}"] < line[unit]:
            return f"{line[f'shared_{unit}']:.0f} of {line[unit]} {unit}"
    return ""


def format_rank(line: dict | None) -> str:
    """Format a rank with its interval."""
    if line is None or isnan(line["rank"]):
        return ""
    text = f"{line['rank']:g}"
    return text if isnan(line["rank_low"]) else f"{text} [{line['rank_low']:g}, {line['rank_high']:g}]"


def format_cost(spent: pd.DataFrame, name: str, cost: str) -> str:
    """Format a cost of a row."""
    value = spent[cost].get(name)
    if value is None or value != value:
        return ""
    if cost in ("learned_parameters", "merge_denoiser_passes", "denoiser_passes_per_image"):
        return f"{value:,.0f}".replace(",", " ")
    return f"{value / 2**30 if cost in PEAKS else value:.3g}"


def format_reported(own: Published, metric: str) -> str:
    """Format a publication's number with its printed digits."""
    return f"{own.values[metric]:g}" if metric in own.values else ""
