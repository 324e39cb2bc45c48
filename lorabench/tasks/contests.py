"""Comparisons of images of finished runs: images of two table rows with the same pair, prompt and seed.

Controls are comparisons whose answer is known. On the microworld the oracle must win against the row without LoRAs in
every question, against the content LoRA by itself in the style, and against the style LoRA by itself in the subject.
Elsewhere a second reference of the subject (of the style) must win against the row without LoRAs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.report.folder import Picture, RunFolder, run_folders
from lorabench.report.labels import BASELINES_AND_ORACLE, ORACLE, row_order
from lorabench.report.pooling import join_pictures, join_scores, load_runs
from lorabench.report.verdicts import CONTROL, ITEM
from lorabench.scoring.judges.questions import Item

BASE = "base"
REFERENCE = "reference"  # in place of a row's label
BY_ORACLE = {BASE: ("subject", "style", "both"), "content_only": ("style", "both"), "style_only": ("subject", "both")}


@dataclass(frozen=True)
class Contest:
    """Two images to compare.

    Args:
        keys: KEYS of `lorabench.report.verdicts`.
        a, b: Labels of their table rows.
        item: The images and their references.
        questions: Questions that apply.
        kind: Item or control.
        expected: "a" for a control, else "".
    """

    keys: dict[str, Any]
    a: str
    b: str
    item: Item
    questions: tuple[str, ...]
    kind: str = ITEM
    expected: str = ""


@dataclass(frozen=True)
class Gallery:
    """The images of several runs, by (content, style, prompt, seed) and row, with the first references of each pair."""

    runs: list[RunFolder]
    pictures: dict[tuple[str, str, str, int], dict[str, Picture]]
    rows: list[str]

    @classmethod
    def load(cls, folders: Sequence[str] | None, images: int, baselines: bool) -> Gallery:
        """Read finished runs.

        Args:
            folders: Run folders, or folders of run folders.
            images: Number of images per pair, the first ones.
            baselines: Also rank baselines and the oracle.

        Raises:
            UserError: If there are fewer than two rows, or the runs cannot be compared.
        """
        if not folders:
            raise UserError("runs is empty; use runs=[<folder of a run>,<folder of another run>]")
        runs = load_runs(run_folders([Path(folder) for folder in folders]))
        join_scores(runs)  # refuses runs that cannot be compared
        found: dict[tuple[str, str, str, int], dict[str, Picture]] = {}
        for picture in join_pictures(runs):
            if picture.index < images:
                label, content, style, prompt, seed = picture.identity
                found.setdefault((content, style, prompt, seed), {})[label] = picture
        labels = row_order(list(dict.fromkeys(label for own in found.values() for label in own)))
        rows = [label for label in labels if baselines or label not in BASELINES_AND_ORACLE]
        if len(rows) < 2:
            key = "judge.baselines=true" if not baselines else "more runs"
            raise UserError(f"comparing needs two table rows, and runs has {', '.join(rows) or 'none'}; use {key}")
        return cls(runs, found, rows)

    def contests(self, questions: Sequence[str]) -> list[Contest]:
        """Return every two rows with an image of the same pair, prompt and seed, then the controls.

        Raises:
            UserError: If no rows share an image.
        """
        found = [*self.items(tuple(questions))]
        if not found:
            raise UserError("the runs share no pair, prompt and seed; use runs of the same dataset and seed")
        return [*found, *self.controls(tuple(questions))]

    def items(self, questions: tuple[str, ...]) -> Iterator[Contest]:
        """Yield every two rows with an image of the same pair, prompt and seed."""
        for own in self.pictures.values():
            for a, b in combinations([label for label in self.rows if label in own], 2):
                yield self.contest(own[a], own[b].label, (own[a].path, own[b].path), questions)

    def controls(self, questions: tuple[str, ...]) -> Iterator[Contest]:
        """Yield the comparisons with a known answer."""
        for own in self.pictures.values():
            if best := own.get(ORACLE):
                for label in (label for label in BY_ORACLE if label in own):
                    asked = tuple(name for name in questions if name in BY_ORACLE[label])
                    if asked:
                        yield self.contest(best, label, (best.path, own[label].path), asked, control=True)
            elif worst := own.get(BASE):
                for question, role, name in (("subject", "content", worst.content), ("style", "style", worst.style)):
                    others = self.references(role, name)[1:]
                    if question in questions and others:
                        yield self.contest(worst, BASE, (others[0], worst.path), (question,), REFERENCE, control=True)

    def contest(
        self, of: Picture, b: str, images: tuple[Path, Path], questions: tuple[str, ...], a: str = "",
        control: bool = False,
    ) -> Contest:  # fmt: skip
        """Return a comparison at the place of a picture, whose label is `a` unless another one is given."""
        shown = self.references("content", of.content)[0], self.references("style", of.style)[0]
        run = self.runs[0]
        keys = {
            "dataset": run.manifest["dataset"], "world": str(run.manifest.get("world", "")), "content": of.content,
            "style": of.style, "prompt": of.prompt, "seed": of.seed, "image": of.index,
        }  # fmt: skip
        item = Item(images, shown, (of.content, of.style))
        kind, expected = (CONTROL, "a") if control else (ITEM, "")
        return Contest(keys, a or of.label, b, item, questions, kind, expected)

    def references(self, role: str, name: str) -> list[Path]:
        """Return the references of a concept, from the first run that has them.

        Raises:
            UserError: If no run has any.
        """
        for run in self.runs:
            if found := run.references(role, name):
                return found
        raise UserError(f"{self.runs[0].path} has no references of {name}; run its command again")
