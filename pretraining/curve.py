"""The curve of a training: curve.csv with one row per checkpoint, and its plot for the model card.

Columns: samples (over all legs), rate, loss (mean since the last row), images_per_second, and the held-out loss of the
averaged weights by timestep (heldout_50, ...).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from lorabench.engine.own_files import PNG_NOTE, check_replaceable
from lorabench.engine.record import write_whole
from lorabench.report.plot_style import default_style
from pretraining.heldout import heldout_losses

HELDOUT = "heldout_"  # start of the columns of held-out losses


class Curve:
    """Writer of curve.csv.

    Args:
        path: The file. Rows beyond `begun` are dropped, because their training is repeated.
        begun: Samples seen before this training.
        heldout: Latents and token ids; None: no held-out columns.
    """

    def __init__(self, path: Path, begun: int, heldout: tuple[Tensor, Tensor] | None = None) -> None:
        self.path, self.heldout = path, heldout
        self.rows: list[dict[str, float]] = []
        if path.exists():
            known = pd.read_csv(path)
            self.rows = known[known["samples"] <= begun].to_dict("records")  # pyright: ignore[reportAttributeAccessIssue]
        self.reset()

    def reset(self) -> None:
        """Start the means of the next row."""
        self.total, self.steps, self.images, self.since = 0.0, 0, 0, time.monotonic()

    def step(self, loss: Tensor, images: int) -> None:
        """Count a step with this number of images."""
        self.total += float(loss)
        self.steps += 1
        self.images += images

    def row(self, module: Any) -> None:
        """Add a row for the current state of a `Pretraining`."""
        row = {
            "samples": module.samples,
            "rate": module.rate(),
            "loss": self.total / max(self.steps, 1),
            "images_per_second": self.images / (time.monotonic() - self.since),
        }
        if self.heldout:
            losses = heldout_losses(module.ema.module, module.loss, *(each.to(module.device) for each in self.heldout))
            row |= {f"{HELDOUT}{t}": loss for t, loss in losses.items()}
        self.rows.append(row)
        pd.DataFrame(self.rows).to_csv(self.path, index=False, float_format="%.6g")
        self.reset()


@default_style()
def plot(curves: dict[str, Path], out: Path) -> None:
    """Plot the held-out loss over samples: one line per timestep, solid at constant rate and dotted for decays.

    Args:
        curves: csv files by label, the first with solid lines.
        out: The image file, .png.

    Raises:
        UserError: If it is a file that lorabench did not write.
    """
    from matplotlib.figure import Figure

    check_replaceable(out, "--out <a new file>")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, path in enumerate(curves.values()):
        rows = pd.read_csv(path)
        for place, column in enumerate(name for name in rows if name.startswith(HELDOUT)):
            name = f"t = {column.removeprefix(HELDOUT)}" if number == 0 else None
            style = "-" if number == 0 else ":"
            axes.plot(rows["samples"] / 1e6, rows[column], style, marker=".", color=f"C{place}", label=name)
    axes.set(xlabel="million samples", ylabel="held-out loss of v", yscale="log", title=", ".join(curves))
    figure.legend(loc="outside right center", fontsize="small")
    write_whole(out, lambda draft: figure.savefig(draft, dpi=120, format="png", metadata=PNG_NOTE))
