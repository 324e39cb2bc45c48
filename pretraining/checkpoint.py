"""State of an interrupted training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lorabench.engine.record import write_whole


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
        """Write the state; an interruption leaves the previous one intact."""
        state = {name: part.state_dict() for name, part in self.parts.items()} | {self.count: done}
        write_whole(self.path, lambda draft: torch.save(state, draft))
