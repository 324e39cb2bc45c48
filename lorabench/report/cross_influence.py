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
`drop`. All quantities are computed per pair and averaged over pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

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


def write_cross_influence(folders: Sequence[Path], out: Path) -> None:
    """Write cross_influence.md and .csv if the runs have images of all three uses.

    Args:
        folders: Run folders.
        out: Folder of the report.
    """
    scores = pd.concat([pd.read_parquet(folder / "scores.parquet") for folder in folders])
    if "use" not in scores or not {"joint", "content", "style"} <= set(scores["use"]):
        return
    files = [folder / OVERLAP for folder in folders if (folder / OVERLAP).is_file()]
    overlap = pd.concat([pd.read_csv(file) for file in files]) if files else None
    found = quantities(scores.drop_duplicates(), overlap)
    found.to_csv(out / DATA, index=False, float_format="%.6g")
    (out / FILE).write_text(table(found), encoding="utf-8")


def quantities(scores: pd.DataFrame, overlap: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row per label, backbone and quantity, with mean, low, high and the number of pairs.

    Args:
        scores: Rows of scores of all uses.
        overlap: Columns label, content, style and overlap.
    """
    scores = scores.assign(label=[label(*each) for each in zip(scores["method"], scores["ablation"], strict=True)])
    lines = []
    mine: Any
    for key, mine in scores.query("metric in @METRICS").groupby(["label", "backbone"], sort=False):
        name, backbone = cast(tuple[str, str], key)
        values = pair_quantities(mine)
        if overlap is not None:
            own: Any = overlap.query("label == @name").drop_duplicates(averages.PAIR)
            values["overlap"] = own.set_index(averages.PAIR)["overlap"]
        for quantity in QUANTITIES:
            if quantity in values and len(known := pd.Series(values[quantity]).dropna()):
                at = stats.over_pairs(known)
                numbers = {"mean": at.mean, "low": at.low, "high": at.high, "pairs": at.pairs}
                lines.append({"label": name, "backbone": backbone, "quantity": quantity, **numbers})
    return pd.DataFrame(lines)


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
    """Return the quantities as Markdown, one table per backbone."""
    parts = ["# Content preservation, style fidelity and cross-influence"]
    rows: Any
    for backbone, rows in found.groupby("backbone", sort=False):
        names = [name for name in QUANTITIES if name in set(rows["quantity"])]
        lines = [row(["row", *names]), f"|---|{'---:|' * len(names)}"]
        for name, mine in rows.groupby("label", sort=False):
            by_name = mine.set_index("quantity")
            cells = [cell(by_name.loc[each]) if each in by_name.index else "" for each in names]
            lines.append(row([escape(str(name)), *cells]))
        pairs = int(rows["pairs"].max())
        parts += [f"Backbone {backbone}, {pairs} pair{'s' if pairs != 1 else ''}:", "\n".join(lines)]
    known = [name for name in QUANTITIES if name in set(found["quantity"])]
    parts.append("\n".join(f"- {name}: {QUANTITIES[name]}" for name in known))
    parts.append("Means over pairs with 95 % intervals. docs/craft.md explains the three readings of cross-influence.")
    return "\n\n".join(parts) + "\n"


def cell(line: Any) -> str:
    """Return a mean with its interval as text."""
    mean = f"{line['mean']:.3f}"
    return mean if pd.isna(line["low"]) else f"{mean} [{line['low']:.3f}, {line['high']:.3f}]"
