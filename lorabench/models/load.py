"""Loading of models of all families."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lorabench.models.files import ModelFiles
from lorabench.models.model import DiffusionModel

CLASSES = {"sdxl": "SDXL", "sd3": "SD3", "flux": "Flux"}  # by family, in lorabench/models/<family>/model.py


def load(files: ModelFiles, device: str = "cpu") -> DiffusionModel:
    """Load the model of these files on a device."""
    family = files.family.name
    model: Any = getattr(import_module(f"lorabench.models.{family}.model"), CLASSES[family])
    return model.load(files, device)
