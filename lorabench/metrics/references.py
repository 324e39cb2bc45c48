"""Embeddings of references and texts: made once, kept in memory and on disk by content hash and by scorer.

References are the same for every method, prompt and seed, so a run embeds each once, however many items it scores in
however many processes, and so do the runs after it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lorabench.artifact import write_whole
from lorabench.data.pairs import Concept
from lorabench.metrics.clip import Clip
from lorabench.metrics.preprocess import to_uint8
from lorabench.metrics.scorer import Scorer

LAYOUT = "1"  # of the files; a change makes all embeddings anew
Rows = dict[str, torch.Tensor]  # by role (of a text: "text"), a unit row [d] each


class References:
    """folder: where embeddings are kept, <scorer>-<version>/<hash>.safetensors; None is in memory alone."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[tuple[str, str, str], Rows] = {}

    def concept(self, scorer: Scorer, concept: Concept) -> Rows:
        """The concept's references by role, unit rows [m, d] in their order."""
        found = {reference.sha256: self._find(scorer, reference.sha256) for reference in concept.references}
        new = [reference for reference in concept.references if found[reference.sha256] is None]
        if new:
            embedded = scorer.embed([to_uint8(reference.load()) for reference in new])
            for i, reference in enumerate(new):
                rows = {role: values[i].clone() for role, values in embedded.items()}
                found[reference.sha256] = self._keep(scorer, reference.sha256, rows)
        ordered = [found[reference.sha256] for reference in concept.references]
        return {role: torch.stack([rows[role] for rows in ordered if rows is not None]) for role in scorer.roles}

    def text(self, scorer: Clip, text: str) -> torch.Tensor:
        """The unit row [1, d] of a text."""
        content = hashlib.sha256(f"text {text}".encode()).hexdigest()
        rows = self._find(scorer, content)
        if rows is None:
            rows = self._keep(scorer, content, {"text": scorer.embed_text([text])[0].clone()})
        return rows["text"][None]

    def _find(self, scorer: Scorer, content: str) -> Rows | None:
        key = (scorer.name, scorer.version, content)
        if key not in self._kept and self.folder is not None:
            path = self._path(self.folder, scorer, content)
            try:
                self._kept[key] = load_file(path)
            except (OSError, SafetensorError):
                return None  # not there, or spoilt: embedded again
        return self._kept.get(key)

    def _keep(self, scorer: Scorer, content: str, rows: Rows) -> Rows:
        self._kept[scorer.name, scorer.version, content] = rows
        if self.folder is not None:
            write_whole(self._path(self.folder, scorer, content), lambda draft: save_file(rows, draft))
        return rows

    @staticmethod
    def _path(folder: Path, scorer: Scorer, content: str) -> Path:
        return folder / f"{LAYOUT}-{scorer.name}-{scorer.version}" / f"{content}.safetensors"
