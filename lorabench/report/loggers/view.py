"""Base class of the views of a run and the view that writes csv files."""

import csv
from pathlib import Path
from types import TracebackType
from typing import Self


class View:
    """Shows nothing; the others show what their methods are told. A context, which knows whether the run failed."""

    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        """The loss terms of one finished fit, a value a step."""

    def finish(self) -> None:
        """The run folder is complete."""

    def close(self, failed: bool) -> None:
        """The run is over, whole or not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


class CsvView(View):
    """curves.csv: stage, name, term, step, value."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "curves.csv"
        self.rows: list[tuple[str, str, str, int, float]] = []

    def curves(self, stage: str, name: str, curves: dict[str, list[float]]) -> None:
        for term, values in curves.items():
            self.rows += [(stage, name, term, step, value) for step, value in enumerate(values)]

    def finish(self) -> None:
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([("stage", "name", "term", "step", "value"), *sorted(self.rows)])
