"""docs/grid.png, the figure in README.md: the first pairs of all_methods, by the LoRAs alone and by four methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from result_files import run_files

from lorabench.report.figures import draw_grid
from lorabench.report.folder import SCORES, RunFolder

NAME = "all_methods"
FILE = Path(__file__).parent / "grid.png"
METHODS, PAIRS = ("direct", "ziplora", "duolora", "klora"), 5


def draw(folder: Path) -> Path:
    """Write the figure from a finished run of experiments=all_methods and return its path.

    Args:
        folder: outputs/all_methods, or its run folder.
    """
    [scores] = run_files(folder, SCORES)
    runs = [run for run in RunFolder.load_all(scores.parent) if run.label in METHODS]
    pairs = list(dict.fromkeys(zip(runs[0].scores["content"], runs[0].scores["style"], strict=True)))[:PAIRS]
    chosen = []
    for run in runs:
        shown = [pair in pairs for pair in zip(run.scores["content"], run.scores["style"], strict=True)]
        chosen.append(replace(run, scores=run.scores[shown]))
    draw_grid(chosen).save(FILE, optimize=True)
    return FILE
