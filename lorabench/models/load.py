"""Loading of models of all families."""

from __future__ import annotations

from lorabench.models.files import ModelFiles
from lorabench.models.model import DiffusionModel
from lorabench.models.sdxl.model import SDXL


def load(files: ModelFiles, device: str = "cpu") -> DiffusionModel:
    """Load a model from its files onto a device."""
    return SDXL.load(files, device)
