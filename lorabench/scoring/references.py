"""Embeddings of references and texts: made once, kept in memory and on disk by content hash and by scorer.

References are the same for every method, prompt and seed, so a run embeds each once, however many items it scores in
however many processes, and so do the runs after it. Each is embedded by itself: in a batch its last digits would depend
on which others were still unknown, and so would scores under the same key.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lorabench.data.pairs import Concept, Reference
from lorabench.engine.record import write_whole
from lorabench.scoring.clip import Clip
from lorabench.scoring.preprocess import to_uint8
from lorabench.scoring.scorer import Scorer

LAYOUT = "2"  # of the files; a change makes all embeddings anew
Rows = dict[str, torch.Tensor]  # by role (of a text: "text"), a unit row [d] each


class References:
    """folder: where embeddings are kept, <scorer>-<version>/<hash>.safetensors; None is in memory alone."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[tuple[str, str, str], Rows] = {}

    def concept(self, scorer: Scorer, concept: Concept) -> Rows:
        """The concept's references by role, unit rows [m, d] in their order."""
        ordered = [self._reference(scorer, reference) for reference in concept.references]
        return {role: torch.stack([rows[role] for rows in ordered]) for role in scorer.roles}

    def text(self, scorer: Clip, text: str) -> torch.Tensor:
        """The unit row [1, d] of a text."""
        content = hashlib.sha256(f"text {text}".encode()).hexdigest()
        rows = self._find(scorer, content)
        if rows is None:
            rows = self._keep(scorer, content, {"text": scorer.embed_text([text])[0].clone()})
        return rows["text"][None]

    def _reference(self, scorer: Scorer, reference: Reference) -> Rows:
        rows = self._find(scorer, reference.sha256)
        if rows is None:
            embedded = scorer.embed([to_uint8(reference.load())])
            rows = self._keep(scorer, reference.sha256, {role: own[0].clone() for role, own in embedded.items()})
        return rows

    def _find(self, scorer: Scorer, content: str) -> Rows | None:
        key = (scorer.name, scorer.version, content)
        if key not in self._kept and self.folder is not None:
            path = self._path(self.folder, scorer, content)
            try:
                with safe_open(path, "pt") as file:
                    rows = {role: file.get_tensor(role) for role in file.keys()}  # noqa: SIM118
                    whole = file.metadata() == {"sha256": digest(rows)}
            except (OSError, SafetensorError):
                return None  # not there, or spoilt: embedded again
            if whole:
                self._kept[key] = rows
        return self._kept.get(key)

    def _keep(self, scorer: Scorer, content: str, rows: Rows) -> Rows:
        self._kept[scorer.name, scorer.version, content] = rows
        if self.folder is not None:
            known = {"sha256": digest(rows)}
            write_whole(self._path(self.folder, scorer, content), lambda draft: save_file(rows, draft, known))
        return rows

    @staticmethod
    def _path(folder: Path, scorer: Scorer, content: str) -> Path:
        return folder / f"{LAYOUT}-{scorer.name}-{scorer.version}" / f"{content}.safetensors"


def digest(rows: Rows) -> str:
    """sha256 of the names and numbers, by which a flipped bit is found."""
    found = hashlib.sha256()
    for role in sorted(rows):
        found.update(role.encode() + rows[role].numpy().tobytes())
    return found.hexdigest()
