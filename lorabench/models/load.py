"""Loading a model of any family."""

from __future__ import annotations

from lorabench.models.files import ModelFiles
from lorabench.models.model import DiffusionModel
from lorabench.models.sdxl.model import SDXL


def load(files: ModelFiles, device: str = "cpu") -> DiffusionModel:
    """Load the model of these files on a device."""
    return SDXL.load(files, device)
