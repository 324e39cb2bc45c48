"""The call of a worker or a rank: compute artifacts and put them into the store."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorabench.base import UserError
from lorabench.engine.artifact import Artifact
from lorabench.engine.store import Store
from lorabench.engine.work import BatchWork, Progress, Resumable


@dataclass(frozen=True)
class Make:
    """Callable that computes one artifact, or several artifacts of one batch, into the store.

    Args:
        store: The store.
        artifacts: The artifacts to compute.
        logs: Folder for the log of a failure, which then does not end the run. None: a failure raises.
    """

    store: Store
    artifacts: tuple[Artifact, ...]
    logs: Path | None = None

    @property
    def steps(self) -> int:
        """Return the progress at the end."""
        return sum(each.steps for each in self.artifacts)

    @property
    def cost(self) -> float:
        """Return the share of the progress bar."""
        return sum(each.cost for each in self.artifacts)

    def __call__(self, progress: Progress) -> None:
        try:
            self.compute(progress)
        except Exception as error:
            if self.logs is None:
                raise
            self.logs.mkdir(parents=True, exist_ok=True)
            text = str(error) if isinstance(error, UserError) else traceback.format_exc()
            for each in self.artifacts:
                (self.logs / f"{each.key}.txt").write_text(text, encoding="utf-8")

    def compute(self, progress: Progress) -> None:
        """Compute the artifacts that the store lacks."""
        first, *others = self.artifacts
        if not others:
            work = first.work
            if isinstance(work, Resumable):
                work = partial(work.run, self.store.scratch(first))
            self.store.get_or_make(first, lambda folder: work(folder, progress))
            return
        works = {each.key: each.work for each in self.artifacts}

        def together(drafts: dict[str, Path]) -> None:
            missing = [work for key in drafts if isinstance(work := works[key], BatchWork)]
            missing[0].run(missing, list(drafts.values()), progress)

        self.store.get_or_make_all(self.artifacts, together)
