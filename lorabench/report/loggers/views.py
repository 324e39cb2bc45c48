"""Open the view that shows the curves, images and table of a run."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.schemas import LoggerSpec
from lorabench.report.loggers.view import CsvView, View

OFF = ("disabled", "off", "none", "false", "0")  # values of WANDB_MODE without logging; W&B has the first only
MODES = ("online", "offline", "dryrun", "run", "shared")  # which `mode` overrides
TRUE = ("true", "1", "yes", "on")  # values of WANDB_DISABLED, W&B's older variable


def logger_of(cfg: DictConfig) -> LoggerSpec:
    """Return the logger of a config; none if the environment disables W&B.

    Raises:
        UserError: If WANDB_MODE has another value.
    """
    spec: Any = OmegaConf.to_object(cfg.logger)
    if spec.kind != "wandb":
        return spec
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if mode in OFF or os.environ.get("WANDB_DISABLED", "").strip().lower() in TRUE:
        return replace(spec, kind="none")
    if mode and mode not in MODES:
        raise UserError(f"WANDB_MODE={mode} must be online, offline or disabled; use WANDB_MODE=disabled or unset it")
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
