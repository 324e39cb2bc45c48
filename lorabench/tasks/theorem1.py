"""task=theorem1: test Theorem 1 of DuoLoRA (arXiv 2504.13206), E_rank <= E_out at equal budget, on trained LoRAs.

For every layer of every LoRA of the dataset and every budget k (non-zero mask entries, up to the rank), this computes
the minimum relative error of three masks: a rank mask in the SVD basis, a rank mask on the trained factors, and an
output mask. docs/theorem1.md derives the expected result: no violation in the SVD basis, some on the trained factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from omegaconf import DictConfig

from lorabench.report.plot_style import default_style

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA

BASES = {"e_rank_svd": "SVD basis", "e_rank_raw": "trained factors"}
TOLERANCE = 1e-6  # relative; errors are square roots of float64 differences, accurate to 1e-8
INK, MUTED, RULE, FAIL = "#1c1d21", "#6a6c76", "#d9dae0", "#f6dfe0"


def run(cfg: DictConfig, folder: Path) -> str:
    """Train the LoRAs that the store lacks; write theorem1.csv, theorem1.md and theorem1.png."""
    from lorabench.engine.make import make
    from lorabench.lora.adapter import LoRA
    from lorabench.tasks.benchmark import plan_of
    from lorabench.tasks.composition import ablation_of, method_of
    from lorabench.tasks.rows import Row

    row = Row.chosen(method_of(cfg), ablation_of())
    plan = plan_of(cfg, [row])
    make(plan.store, plan.trainer, plan.artifacts("personalize"))
    parts = {part.key: part for pair in plan.pairs for part in plan.trained.loras(row, pair)}.values()
    loras = {
        f"{part.artifact.name} {part.name}".removesuffix(" lora"): LoRA.load(plan.trained.file(part)) for part in parts
    }
    errors = pd.concat([measure(name, lora) for name, lora in loras.items()], ignore_index=True)
    errors.to_csv(folder / "theorem1.csv", index=False)
    text = summary(errors)
    (folder / "theorem1.md").write_text(text, encoding="utf-8")
    draw(errors, folder / "theorem1.png")
    print(text)
    return "theorem1.png"


def measure(concept: str, lora: LoRA) -> pd.DataFrame:
    """Return the errors of a LoRA, one row per layer and budget k."""
    from lorabench.merging.mask_errors import out_errors, raw_rank_errors, svd_rank_errors

    rows = []
    for layer, factors in lora.items():
        by_mask = [errors(factors).tolist() for errors in (svd_rank_errors, raw_rank_errors, out_errors)]
        for k, errors in enumerate(zip(*by_mask, strict=False), 1):  # a layer may have fewer outputs than ranks
            rows.append((layer, concept, k, *errors))
    return pd.DataFrame(rows, columns=["layer", "concept", "k", *BASES, "e_out"])


def violations(errors: pd.DataFrame, basis: str) -> pd.DataFrame:
    """Return the rows in which the rank mask has the larger error, sorted by the difference, `excess`."""
    with_excess = errors.assign(excess=errors[basis] - errors["e_out"])
    return with_excess.query(f"excess > {TOLERANCE}").sort_values("excess", ascending=False)


def summary(errors: pd.DataFrame) -> str:
    """Return Markdown: violations by basis, mean errors by budget, and the layers with violations."""
    found = {name: violations(errors, basis) for basis, name in BASES.items()}
    counts = [
        (name, f"{len(rows):,}", f"{len(rows) / len(errors):.2%}", f"{rows['excess'].max():.4f}" if len(rows) else "-")
        for name, rows in found.items()
    ]
    lines = [
        "# Theorem 1: is a rank mask never worse than an output mask?",
        "",
        f"{len(errors):,} comparisons: {errors['layer'].nunique()} layers of {errors['concept'].nunique()} LoRAs, each "
        "at every budget k of non-zero entries. Errors are relative (Frobenius). A violation is E_rank > E_out.",
        "",
        *markdown(["rank mask in the", "violations", "of all", "largest excess"], counts),
        "",
        "## Mean error by budget",
        "",
        *markdown(["k", *(f"E_rank, {name}" for name in BASES.values()), "E_out"], list(mean_errors(errors))),
    ]
    for name, rows in found.items():
        lines += ["", f"## Violations in the {name}", "", *places(rows)]
    return "\n".join(lines) + "\n"


def mean_errors(errors: pd.DataFrame) -> Iterator[tuple]:
    """Yield the mean errors by budget as cells of a table."""
    for k, rows in errors.groupby("k"):
        yield k, *(f"{rows[column].mean():.3f}" for column in (*BASES, "e_out"))


def places(found: pd.DataFrame) -> Iterator[str]:
    """Yield the numbers of violations by budget, block, projection and LoRA, and the five largest."""
    if not len(found):
        yield "None."
        return
    parts = found["layer"].str.extract(r"^(?P<block>\w+_blocks?(?:\.\d+)?).*\.(?P<projection>attn\d\.\w+)")
    groups = {"k": found["k"], "block": parts["block"], "projection": parts["projection"], "LoRA": found["concept"]}
    for name, column in groups.items():
        counts = column.value_counts().sort_index()
        yield f"- by {name}: " + ", ".join(f"{value} {count}" for value, count in counts.items())
    yield ""
    worst = found.head(5)[["concept", "layer", "k", *BASES, "e_out"]]
    yield from markdown(
        ["LoRA", "layer", "k", *(f"E_rank, {name}" for name in BASES.values()), "E_out"],
        [(*row[:3], *(f"{value:.4f}" for value in row[3:])) for row in worst.itertuples(index=False)],
    )


def markdown(heads: list[str], rows: list[tuple]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join(['---', *['---:'] * (len(heads) - 1)])} |"
    for row in rows:
        yield f"| {' | '.join(str(cell) for cell in row)} |"


@default_style()
def draw(errors: pd.DataFrame, path: Path) -> None:
    """Plot E_rank against E_out, one panel per basis, budget as color. Points above the diagonal are violations."""
    from matplotlib.figure import Figure

    style = {"color": INK, "fontsize": 13}
    figure = Figure(figsize=(11, 5.6), dpi=160, layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, (basis, name) in zip(panels, BASES.items(), strict=True):
        panel.fill_between([0, 1], [0, 1], 1, color=FAIL, linewidth=0, zorder=0)
        panel.plot([0, 1], [0, 1], color=INK, linewidth=1, zorder=3)
        panel.text(0.03, 0.96, "rank mask worse", color="#a8434a", fontsize=11, va="top")
        shuffled = errors.sample(frac=1, random_state=0)  # so that no budget hides all others
        panel.scatter(
            shuffled["e_out"], shuffled[basis], c=shuffled["k"], s=7, cmap="viridis_r", linewidths=0, zorder=2
        )
        count = len(violations(errors, basis))
        panel.set_title(f"{name[0].upper()}{name[1:]}: {count:,} of {len(errors):,} violate", loc="left", **style)
        panel.set_xlabel("E_out, output mask", **style)
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.tick_params(colors=MUTED, labelsize=11, length=0)
        panel.grid(color=RULE, linewidth=0.6, zorder=1)
        for spine in panel.spines.values():
            spine.set_color(RULE)
    panels[0].set_ylabel("E_rank, rank mask", **style)
    bar = figure.colorbar(panels[0].collections[-1], ax=panels, shrink=0.86, aspect=32, pad=0.02)
    bar.set_label("non-zero mask entries k", **style)
    bar.ax.tick_params(colors=MUTED, labelsize=11, length=0)
    bar.outline.set_visible(False)
    figure.savefig(path)
