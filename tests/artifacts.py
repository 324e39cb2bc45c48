"""Artifacts that need no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabench.engine.artifact import Artifact
from lorabench.engine.work import Progress, Resumable, Work


def nothing(folder: Path, progress: Progress) -> None:
    """Write no file; for artifacts whose work is given to the store."""


def artifact(stage: str, params: Mapping[str, Any], work: Work | Resumable = nothing, **fields: Any) -> Artifact:
    """Return an artifact of version 1 that is named by its stage."""
    return Artifact(stage, stage, 1, params, work, **fields)
