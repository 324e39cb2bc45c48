"""Open the view that shows the curves, images and table of a run."""

from pathlib import Path
from typing import Any

from lorabench.config.schemas import LoggerSpec
from lorabench.report.loggers.view import CsvView, View


def open_view(spec: LoggerSpec, folder: Path, key: str = "", config: dict[str, Any] | None = None) -> View:
    """The view that the config asks for, on a run folder.

    key: the same for runs of equal results, so that a resumed run is known.  config: resolved.
    """
    if spec.kind == "wandb":
        from lorabench.report.loggers.wandb import WandbView

        return WandbView(spec, folder, key, config or {})
    return CsvView(folder) if spec.kind == "csv" else View()
