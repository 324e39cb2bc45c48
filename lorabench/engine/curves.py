"""A Lightning logger that keeps the loss curves of one fit, for the store."""

import json
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger


class Curves(Logger):
    """Logger whose `values` has the logged values of each loss term, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = {}

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore hyperparameters; the resolved configuration of the run has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for term, value in metrics.items():
            if term != "epoch":
                self.values.setdefault(term, []).append(float(value))

    def write(self, folder: Path) -> None:
        """Write curves.json."""
        (folder / "curves.json").write_text(json.dumps(self.values))
