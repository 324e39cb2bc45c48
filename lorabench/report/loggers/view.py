"""Base class of the views of a run and the view that writes csv files."""

import csv
from pathlib import Path
from types import TracebackType
from typing import Self

from lorabench.engine.output_folder import OutputFolder


class View:
    """Base class, which shows nothing. As a context manager it also receives whether the run failed."""

    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        """Show the loss terms of a finished fit, with one value per step."""

    def finish(self) -> None:
        """Show the images and scores of the complete run folder."""

    def close(self, failed: bool) -> None:
        """Close the view after a complete or failed run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


CURVES = "curves.csv"


class CsvView(View):
    """Write curves.csv with the columns stage, name, term, step, value."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[tuple[str, str, str, int, float]] = []

    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        for term, values in curves.items():
            self.rows += [(stage, name, term, step, value) for step, value in enumerate(values)]

    def finish(self) -> None:
        with OutputFolder(self.folder).add(CURVES).open("w", newline="") as file:
            csv.writer(file).writerows([("stage", "name", "term", "step", "value"), *sorted(self.rows)])
