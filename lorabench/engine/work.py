"""Ways to compute the files of an artifact: in one process, in units that processes share, or several per batch."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lorabench.engine.costs import COST_FILE, joined_costs, measured

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[int], None]  # called with the number of finished steps
Work = Callable[[Path, Progress], None]  # writes the files of an artifact into an empty folder
PARTS = "parts"  # subfolder for the results of units, which `finish` joins


@dataclass(frozen=True)
class Resumable:
    """Long work that resumes after a kill.

    Args:
        run: Writes the files of an artifact; called with the scratch folder that it resumes from, with the folder to
            fill, and with a progress function.
    """

    run: Callable[[Path, Path, Progress], None]


class UnitWork(ABC):
    """Work in numbered units, which several processes can share.

    A unit writes its result into the folder of the artifact. The result does not depend on the process.
    """

    @property
    @abstractmethod
    def units(self) -> int:
        """Return the number of units."""

    @abstractmethod
    def compute(self, numbers: Sequence[int], folder: Path, progress: Progress) -> None:
        """Compute these units; write their results and costs into the folder, see `counted`."""

    @abstractmethod
    def finish(self, folder: Path) -> None:
        """Join the results of all units.

        Raises:
            RuntimeError: If a result is missing.
        """

    def join(self, folder: Path) -> None:
        """Complete the artifact after all units are computed.

        Raises:
            RuntimeError: If a unit is missing or was computed twice.
        """
        parts = folder / PARTS
        costs = [json.loads(file.read_text()) for file in sorted(parts.glob("*.json"))]
        computed = sorted(number for cost in costs for number in cost.pop("units"))
        if computed != list(range(self.units)):
            raise RuntimeError(f"an artifact has {self.units} units, but these were computed: {computed}")
        self.finish(folder)
        (folder / COST_FILE).write_text(json.dumps(joined_costs(costs)))
        shutil.rmtree(parts)

    def __call__(self, folder: Path, progress: Progress) -> None:
        self.compute(range(self.units), folder, progress)
        self.join(folder)


class BatchWork(ABC):
    """Work that can compute several artifacts in one batch.

    Attributes:
        batch_size: Maximum number of artifacts in one batch.
    """

    batch_size: int

    @classmethod
    @abstractmethod
    def run(cls, works: Sequence[Self], folders: Sequence[Path], progress: Progress) -> None:
        """Write the files of each work into its folder."""

    def __call__(self, folder: Path, progress: Progress) -> None:
        self.run([self], [folder], progress)


@contextmanager
def counted(numbers: Sequence[int], folder: Path, network: nn.Module | None = None) -> Iterator[Path]:
    """Measure the costs of these units while the block computes them. Yields the folder for their results."""
    parts, costs = folder / PARTS, dict[str, Any]()
    parts.mkdir(exist_ok=True)
    with measured(costs, network):
        yield parts
    (parts / f"{numbers[0]:06d}.json").write_text(json.dumps({"units": list(numbers), **costs}))
