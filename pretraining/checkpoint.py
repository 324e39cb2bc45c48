"""State of an interrupted training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Checkpoint:
    """File with the state of a training.

    Args:
        path: The file.
        parts: Networks and optimizers by their names in the file.
        count: Name of the number of finished steps or epochs.
    """

    path: Path
    parts: dict[str, nn.Module | torch.optim.Optimizer]
    count: str

    def restore(self) -> int:
        """Load the state, if the file exists, and return the number of finished steps or epochs."""
        if not self.path.is_file():
            return 0
        saved = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        return saved[self.count]

    def save(self, done: int) -> None:
        """Write the state to a new file and rename it, so that an interruption leaves the previous one intact."""
        partial = self.path.with_suffix(".tmp")
        torch.save({name: part.state_dict() for name, part in self.parts.items()} | {self.count: done}, partial)
        partial.rename(self.path)
