"""Cross-influence of content and style, from images of both and of each one only (uses=[joint,content,style]).

    CP          mean f(x_cs).f(C)                          content preservation
    SF          mean f(x_cs).f(S)                          style fidelity
    cross       max(0, mean f(x_c).f(S)) * max(0, mean f(x_s).f(C))   lower is better
    drop        ((CPo - CP) / CPo + (SFo - SF) / SFo) / 2             lower is better
                CPo = mean f(x_c).f(C), SFo = mean f(x_s).f(S)
    as worded   CP * SF                                               higher is better

f is the L2-normalized CLIP embedding; x_cs, x_c, x_s are joint, content-only and style-only images; C and S are
references.

CRAFT-LoRA (arXiv 2602.18936) words its score as "the relative drop when composing both factors" and, in the next
sentence, as "the product of CLIP-I similarities between the generated image and both reference images; lower values
indicate better disentanglement". The product rises with both similarities, and it is not what is printed: 0.73 * 0.69
is 0.504 and not 0.172. `cross` is the default: its size fits (0.172 = 0.415^2), its direction is right, and the
appendix calls the score an "undesired cross effect".

Similarities by published CLIP models are positive. Those of small scorers may be negative. Then a similarity counts as
0 in `cross`, because the product of two negative ones is positive, and a pair whose CPo or SFo is not positive has no
`drop`. All quantities are computed per pair and averaged over pairs. Planned comparisons are paired by pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lorabench.report import averages, stats
from lorabench.report.labels import label
from lorabench.report.text import escape, row

FILE, DATA = "cross_influence.md", "cross_influence.csv"
OVERLAP = "overlap.csv"  # overlap of the adapters of a run, written with its scores
CONTENT, STYLE = METRICS = "clip_i/content", "clip_i/style"
QUANTITIES = {
    "CP": "content preservation: CLIP-I of joint images with the content's references",
    "SF": "style fidelity: CLIP-I of joint images with the style's references",
    "cross": "CLIP-I of content-only images with the style's references, times that of style-only images with the "
    "content's, each at least 0; lower is better",
    "drop": "relative loss of CP and SF against content-only and style-only images, mean of both; lower is better",
    "as worded": "CP times SF; higher is better, so this cannot be the published score",
    "overlap": "mean squared cosine of the principal angles between the outputs of content and style adapters, over "
    "the layers that both adapt; 0 if they share none",
}


def write_cross_influence(folders: Sequence[Path], out: Path, planned: Sequence[tuple[str, str]] = ()) -> None:
    """Write cross_influence.md and .csv if the runs have images of all three uses.

    Args:
        folders: Run folders.
        out: Folder of the report.
        planned: Labels of rows whose difference, the first minus the second, is reported.
    """
    scores = pd.concat([pd.read_parquet(folder / "scores.parquet") for folder in folders])
    if "use" not in scores or not {"joint", "content", "style"} <= set(scores["use"]):
        return
    files = [folder / OVERLAP for folder in folders if (folder / OVERLAP).is_file()]
    overlap = pd.concat([pd.read_csv(file) for file in files]) if files else None
    found = quantities(scores.drop_duplicates(), overlap, planned)
    found.to_csv(out / DATA, index=False, float_format="%.6g")
    (out / FILE).write_text(table(found), encoding="utf-8")


def quantities(
    scores: pd.DataFrame, overlap: pd.DataFrame | None = None, planned: Sequence[tuple[str, str]] = ()
) -> pd.DataFrame:
    """Return one row per label, backbone and quantity, with mean, low, high and the number of pairs.

    In rows of planned comparisons, `against` is the label of the other row and the mean is that of the paired
    differences; in all others it is empty.

    Args:
        scores: Rows of scores of all uses.
        overlap: Columns label, content, style and overlap.
        planned: Labels of the rows of each difference.
    """
    scores = scores.assign(label=[label(*each) for each in zip(scores["method"], scores["ablation"], strict=True)])
    lines = []
    rows: Any
    mine: Any
    for backbone, rows in scores.query("metric in @METRICS").groupby("backbone", sort=False):
        values: dict[str, dict[str, pd.Series]] = {}  # by label
        for name, mine in rows.groupby("label", sort=False):
            found = values[str(name)] = pair_quantities(mine)
            if overlap is not None:
                own: Any = overlap.query("label == @name").drop_duplicates(averages.PAIR)
                found["overlap"] = own.set_index(averages.PAIR)["overlap"]
        compared = [(name, against) for name, against in planned if name in values and against in values]
        for name, against in [*((name, "") for name in values), *compared]:
            for quantity, numbers in over_pairs(values[name], values.get(against, {})).items():
                line = {"label": name, "backbone": backbone, "quantity": quantity, "against": against}
                lines.append(line | numbers)
    return pd.DataFrame(lines)


def over_pairs(own: Mapping[str, pd.Series], other: Mapping[str, pd.Series]) -> dict[str, dict[str, float]]:
    """Return mean, low, high and number of pairs of each quantity, or of the differences to `other`."""
    found = {}
    for quantity in QUANTITIES:
        if quantity in own and (not other or quantity in other):
            known = (own[quantity] - other[quantity] if other else own[quantity]).dropna()
            if len(known):
                at = stats.over_pairs(known)
                found[quantity] = {"mean": at.mean, "low": at.low, "high": at.high, "pairs": at.pairs}
    return found


def pair_quantities(scores: pd.DataFrame) -> dict[str, pd.Series]:
    """Return each quantity by pair, for one method and backbone; those of missing uses are left out."""

    def of(use: str, metric: str) -> pd.Series:
        return averages.pair_means(scores.query("use == @use and metric == @metric"))

    cp, sf = of("joint", CONTENT), of("joint", STYLE)
    found = {"CP": cp, "SF": sf, "as worded": cp * sf}
    if {"content", "style"} <= set(scores["use"]):
        cpo, sfo = of("content", CONTENT), of("style", STYLE)
        found["cross"] = of("content", STYLE).clip(lower=0) * of("style", CONTENT).clip(lower=0)
        found["drop"] = (((cpo - cp) / cpo + (sfo - sf) / sfo) / 2).where((cpo > 0) & (sfo > 0))
    return found


def table(found: pd.DataFrame) -> str:
    """Return the quantities as Markdown, a table and one of planned comparisons per backbone."""
    parts = ["# Content preservation, style fidelity and cross-influence"]
    known = [name for name in QUANTITIES if name in set(found["quantity"])]
    heads = {name: name for name in known}
    rows: Any
    for backbone, rows in found.groupby("backbone", sort=False):
        pairs = int(rows["pairs"].max())
        parts.append(f"Backbone {backbone}, {pairs} pair{'s' if pairs != 1 else ''}:")
        parts.append(label_table(rows[rows["against"] == ""], "quantity", heads, "row"))
        compared = rows[rows["against"] != ""]
        if len(compared):
            compared = compared.assign(label=compared["label"] + " - " + compared["against"])
            parts.append(label_table(compared, "quantity", heads, "difference", "+.3f"))
    parts.append("\n".join(f"- {name}: {QUANTITIES[name]}" for name in known))
    parts.append(
        "Means over pairs with 95 % intervals; differences are paired by pair, and their intervals are not corrected "
        "for several comparisons. docs/craft.md explains the three readings of cross-influence."
    )
    return "\n\n".join(parts) + "\n"


def label_table(rows: pd.DataFrame, by: str, heads: Mapping[str, str], first: str, form: str = ".3f") -> str:
    """Return a Markdown table with one line per label and one column per measured quantity.

    Args:
        rows: Lines with a label, a quantity, mean, low and high.
        by: The column with the name of the quantity.
        heads: Heads of the columns, by name of the quantity.
        first: Head of the first column.
        form: Format of the numbers.
    """
    text = [row([first, *heads.values()]), f"|---|{'---:|' * len(heads)}"]
    for name, mine in rows.groupby("label", sort=False):
        found = mine.set_index(by)
        text.append(row([escape(str(name)), *(cell(found.loc[n], form) if n in found.index else "" for n in heads)]))
    return "\n".join(text)


def cell(line: Any, form: str = ".3f") -> str:
    """Return a mean with its interval as text."""
    mean = f"{line['mean']:{form}}"
    return mean if pd.isna(line["low"]) else f"{mean} [{line['low']:{form}}, {line['high']:{form}}]"
