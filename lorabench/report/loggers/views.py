"""Open the view that shows the curves, images and table of a run."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lorabench.config.schemas import LoggerSpec
from lorabench.report.loggers.view import CsvView, View


def logger_of(cfg: DictConfig) -> LoggerSpec:
    """Return the logger of a config; none if WANDB_MODE=disabled or WANDB_DISABLED=true is in the environment."""
    spec: Any = OmegaConf.to_object(cfg.logger)
    legacy = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")  # of transformers
    if spec.kind == "wandb" and (legacy or os.environ.get("WANDB_MODE") == "disabled"):
        return replace(spec, kind="none")
    return spec


def open_view(spec: LoggerSpec, folder: Path, key: str = "", config: dict[str, Any] | None = None) -> View:
    """Open the view that the config selects for a run folder; see `logger_of`.

    Args:
        spec: Settings of the view.
        folder: The run folder.
        key: Equal for runs with equal results, so that a resumed run is recognized.
        config: The resolved config.
    """
    if spec.kind == "wandb":
        from lorabench.report.loggers.wandb import WandbView

        return WandbView(spec, folder, key, config or {})
    return CsvView(folder) if spec.kind == "csv" else View()
