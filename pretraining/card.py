"""The model card next to an exported pipeline, and its generated parts.

A generated part is the text between <!-- name --> and <!-- end of name -->. The parts are `parts`, `held-out loss` and
`readout`, each followed by "of <folder of the pipeline>". A card that exists keeps all other text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from pretraining.curve import HELDOUT

CARD = "README.md"
READOUT = "readout"
NOT_READ = "Not measured on these weights.\n"


def fill(card: Path, name: str, text: str) -> None:
    """Replace a generated part of a card; nothing happens if the card or the part does not exist."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if not card.is_file() or begin not in (old := card.read_text()):
        return
    before, _, rest = old.partition(begin)
    card.write_text(f"{before}{begin}{text}{end}{rest.partition(end)[2]}")


def forget_readout(folder: Path) -> None:
    """Empty the readout of a pipeline's card, before other weights replace those that it was measured on."""
    fill(folder.parent / CARD, f"{READOUT} of {folder.name}", NOT_READ)


def write(template: Path | None, folder: Path, parts: str, heldout: str) -> None:
    """Write the card of an exported pipeline if there is none, and fill its parts.

    Args:
        template: Card with empty parts, whose pipeline is named "pipeline"; None: no card is written.
        folder: Folder of the pipeline.
        parts: Table of its parts.
        heldout: Table of held-out losses; "" keeps the card's.
    """
    card = folder.parent / CARD
    if template is not None and not card.exists():
        card.write_text(template.read_text().replace(" of pipeline -->", f" of {folder.name} -->"))
    fill(card, f"parts of {folder.name}", parts)
    if heldout:
        fill(card, f"held-out loss of {folder.name}", heldout)


def parts(pipeline: Any) -> str:
    """Return the table of a pipeline's networks with their classes and numbers of parameters."""
    lines = ["| part | class | parameters |", "|---|---|---|"]
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module):
            count = sum(weight.numel() for weight in part.parameters())
            lines.append(f"| {name} | `{type(part).__name__}` | {count / 1e6:.1f} M |")
    return "\n".join(lines) + "\n"


def heldout(curve: Path, samples: int) -> str:
    """Return the table of held-out losses by noise level, from the row of curve.csv after so many samples.

    Args:
        curve: The file of the training.
        samples: Samples that the exported weights were trained on.

    Returns:
        "" if the file has no such row or no held-out losses.
    """
    if not curve.is_file():
        return ""
    rows = pd.read_csv(curve).query("samples == @samples")
    levels = [name for name in rows.columns if name.startswith(HELDOUT)]
    if rows.empty or not levels:
        return ""
    row = rows.iloc[-1]
    values = " | ".join(f"{row[name]:.3f}".removeprefix("0") for name in levels)
    title = " | ".join(name.removeprefix(HELDOUT) for name in levels)
    return f"| t | {title} |\n|---|{'---|' * len(levels)}\n| {samples:,} samples | {values} |\n"
