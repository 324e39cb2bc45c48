"""The table of a report: one row per method, between baseline and oracle rows, with 95 % intervals and costs.

Numbers that publications report for a method are below its row and marked as reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lorabench.config.choices import choose
from lorabench.config.schemas import ProtocolSpec
from lorabench.report import comparing, planned, protocols, published, stats
from lorabench.report.folder import RunFolder
from lorabench.report.imported import import_notes
from lorabench.report.labels import BASELINES_AND_ORACLE, row_order
from lorabench.report.notes import cost_note, footnotes, layer_notes, merge_notes, seen_notes
from lorabench.report.pooling import join_scores, join_uses, left_out_notes, rounding_notes
from lorabench.report.protocols import Column
from lorabench.report.published import Published
from lorabench.report.words import in_words

COSTS = {
    "learned_parameters": "learned parameters",
    "backbone_seconds": "s of the backbone (once per model)",
    "lora_seconds": "s per LoRA (shared)",
    "merge_seconds": "s to merge",
    "merge_denoiser_passes": "denoiser passes to merge",
    "merge_peak_gpu_bytes": "GiB of the GPU to merge",
    "merge_peak_bytes": "GiB of the process to merge",
    "seconds_per_image": "s per image",
    "denoiser_passes_per_image": "denoiser passes per image",
}
Images = dict[str, dict[str, pd.DataFrame]]
PEAKS = ("merge_peak_gpu_bytes", "merge_peak_bytes")
LINE = [
    "label", "metric", "backbone", "digits", "mean", "low", "high", "bca_low", "bca_high",
    "pairs", "contents", "styles", "images", "difference", "difference_low", "difference_high", "p",
    "shared_pairs", "shared_images", "p_holm", "separated", "rank", "rank_low", "rank_high",
]  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The table of one or several runs, for all output formats.

    Attributes:
        lines: Result of `summary`; `metric` is the name of a column.
        planned: The planned comparisons, with the columns of `planned.LINE`.
        spent: Result of `costs`.
        reported: Rows of publications by label.
        notes: Paragraphs below the table.
        verdict: The last of them, a comparison in words, if there are few methods.
        columns: Definitions of the columns.
        images: Result of `protocols.image_values` by column and label.
        reference: Label of the row that differences refer to; None if the row in the runs' configs is missing.
    """

    lines: pd.DataFrame
    planned: pd.DataFrame
    spent: pd.DataFrame
    reported: dict[str, list[Published]]
    notes: list[str]
    verdict: list[str]
    columns: list[Column]
    images: Images
    reference: str | None

    @classmethod
    def of(cls, runs: list[RunFolder], protocol: ProtocolSpec = protocols.ALL, reference: str | None = None) -> Table:
        """Build the table of runs.

        Args:
            runs: The runs.
            protocol: Definition of the columns.
            reference: Label of the reference row. None: the one in the runs' configs, if present.

        Raises:
            UserError: If the runs are not comparable, have no score for the protocol, or no row `reference`.
        """
        scores = join_scores(runs)
        labels = row_order(scores["label"].tolist())
        if reference is not None:
            choose("--reference", reference, labels)
        elif (configured := common_reference(runs)) in labels:
            reference = configured
        every = join_uses(runs, protocol, scores)
        columns, column_notes = protocols.columns(protocol, every)
        images = images_of(every, columns)
        lines, comparisons = summary(images, columns, row_order(every["label"].unique().tolist()), reference)
        spent = costs(runs)
        reported = published.published_results(runs, columns, protocol.arxiv)
        notes = [*footnotes(lines, comparisons, scores, columns, reference), *column_notes]
        notes += [
            *layer_notes(runs),
            *merge_notes(runs),
            *seen_notes(runs),
            *left_out_notes(runs),
            *rounding_notes(runs),
            *import_notes(runs),
        ]
        if "lora_seconds" in spent:
            notes.append(cost_note(runs))
        if reported:
            notes.append(published.FOOTNOTE)
        return cls(lines, comparisons, spent, reported, notes, in_words(scores, reference), columns, images, reference)

    @property
    def labels(self) -> list[str]:
        """Return the labels of the rows."""
        return list(self.lines["label"].unique())

    @property
    def backbones(self) -> dict[str, str]:
        """Return metric -> backbone, in the order of the columns."""
        return dict(zip(self.lines["metric"], self.lines["backbone"], strict=True))


def common_reference(runs: list[RunFolder]) -> str:
    """Return `reference` of the runs' configs, or "direct" if they differ or have none."""
    found = {str(run.settings.get("reference", "direct")) for run in runs}
    return found.pop() if len(found) == 1 else "direct"


def images_of(scores: pd.DataFrame, columns: list[Column]) -> Images:
    """Return the values of all images by column and label, without rows that have none."""
    by_label = {str(label): own for label, own in scores.groupby("label", sort=False)}
    labels = row_order(list(by_label))
    found = {
        column.name: {name: protocols.image_values(by_label[name], column) for name in labels} for column in columns
    }
    return {name: {label: own for label, own in each.items() if not own.empty} for name, each in found.items()}


def summary(
    images: Images, columns: list[Column], labels: list[str], reference: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summarize the images as one line per row and column, with the columns LINE, and the planned comparisons.

    Methods have a paired difference to the reference, except for the reference itself and for methods that share less
    than two pairs with it. `p_holm` and `separated` are those of the planned comparison with the reference; they are
    NaN if there is none, as for the ablations of other methods. Ranks are among the methods.
    """
    parts, comparisons = [], []
    for column in columns:
        if own := images[column.name]:
            tested = planned.planned_lines(own, column, reference)
            comparisons.append(tested)
            parts.append(column_lines(own, column, reference, tested))
    lines = pd.concat(parts, ignore_index=True)
    at = {name: place for place, name in enumerate(labels)}
    order = lines.sort_values("label", key=lambda names: names.map(at), kind="stable", ignore_index=True)
    known = [each for each in comparisons if len(each)] or comparisons[:1]
    return order, pd.concat(known, ignore_index=True)


def column_lines(
    images: dict[str, pd.DataFrame], column: Column, reference: str | None, tested: pd.DataFrame
) -> pd.DataFrame:
    """Return the lines of one column.

    Args:
        images: Result of `protocols.image_values` by label.
        column: The column.
        reference: Label of the reference row.
        tested: Planned comparisons of the column.
    """
    methods = {name: own for name, own in images.items() if name not in BASELINES_AND_ORACLE}
    lines = []
    for name, own in images.items():
        at = stats.mean(own, *column.rule)
        line = {
            "label": name,
            "metric": column.name,
            "backbone": column.backbone,
            "digits": column.digits,
            "mean": at.mean,
            "low": at.low,
            "high": at.high,
            "bca_low": at.bca_low,
            "bca_high": at.bca_high,
            "pairs": at.pairs,
            "contents": at.contents,
            "styles": at.styles,
            "images": len(own),
        }
        if name in methods and reference in images and name != reference:
            line |= planned.difference(own, images[reference], column)
        lines.append(line)
    frame = pd.DataFrame(lines).reindex(columns=LINE).set_index("label", drop=False).rename_axis(None)
    against = tested[tested["against"] == reference].drop_duplicates("label").set_index("label")
    for each in ("p_holm", "separated"):
        frame[each] = against[each].reindex(frame.index)
    ranks = comparing.ranks(methods, *column.rule)
    frame[ranks.columns] = ranks.reindex(frame.index)
    return frame


def costs(runs: list[RunFolder]) -> pd.DataFrame:
    """Return the COSTS that any run has by label: means over the runs (seeds) of a method, maxima of memory peaks.

    Of the two memory peaks only one is kept: the GPU's if all runs with a peak have it, else the process's.
    """
    rows = pd.DataFrame([{"label": run.label, **run.manifest.get("costs", {})} for run in runs])
    known = [cost for cost in COSTS if cost in rows and rows[cost].notna().to_numpy().any()]
    if set(PEAKS) <= set(known):
        on_gpu, process = (rows[peak].notna().to_numpy() for peak in PEAKS)
        known.remove(PEAKS[1] if (on_gpu | ~process).all() else PEAKS[0])
    by_label = rows[["label", *known]].groupby("label", sort=False)
    how: Any = {cost: "max" if cost in PEAKS else "mean" for cost in known}
    return pd.DataFrame(by_label.agg(how) if known else by_label.first())
