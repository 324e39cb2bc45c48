"""Pictures that the micro scorers learn from, drawn once to a memory map.

A block is a full grid of 8 subjects (2 classes x 4) in 8 styles (4 families x 2), plus 3 photographs of each subject,
every picture in a pose of its own. So identities repeat across styles and styles across identities, and a batch can
hold what is hardest to tell apart: other individuals of the same class in the very same style, and other settings of
the same family on the very same subject. All factors follow from the block's number; only pixels are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from lorabench.base import seed_of
from lorabench.data import microworld as mw

SUBJECTS, STYLES, PHOTOS = 8, 8, 3  # a block
VIEWS = STYLES + PHOTOS
SIZE = 64


@dataclass(frozen=True)
class Block:
    """8 subjects, 8 styles and the poses [8][VIEWS]; view j < 8 is style j, the others are photographs."""

    subjects: list[mw.Subject]
    styles: list[mw.Style]
    poses: list[list[mw.Pose]]

    def style_of(self, view: int) -> mw.Style | None:
        return self.styles[view] if view < STYLES else None


def draw_block(number: int) -> Block:
    """The factors of a block, from its number alone; never a held-out subject or style."""
    rng = np.random.default_rng(seed_of("scorer block", mw.VERSION, number))
    classes = rng.choice(mw.CLASSES, 2, replace=False)
    families = rng.choice(mw.FAMILIES, 4, replace=False)
    return Block(
        [mw.sample_subject(rng, str(c)) for c in classes for _ in range(SUBJECTS // 2)],
        [mw.sample_style(rng, str(f)) for f in families for _ in range(STYLES // 4)],
        [[mw.sample_pose(rng) for _ in range(VIEWS)] for _ in range(SUBJECTS)],
    )


@cache
def world_fingerprint() -> str:
    """Hash of one picture of every family as it is drawn now: a bank of another world is another file."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(seed_of("fingerprint"))
    for number, family in enumerate([*mw.FAMILIES, None]):
        subject = mw.sample_subject(rng, mw.CLASSES[number % len(mw.CLASSES)])
        look = mw.sample_style(rng, family) if family else None
        digest.update(mw.render(subject, look, mw.sample_pose(rng), SIZE).tobytes())
    return digest.hexdigest()[:12]


class ScorerBank:
    """`blocks` blocks: .pixels uint8 [blocks, SUBJECTS, VIEWS, SIZE, SIZE, 3] (memory map) and .factors."""

    def __init__(self, folder: Path, blocks: int) -> None:
        self.blocks = blocks
        name = f"scorer_bank-{world_fingerprint()}-{blocks}"
        self.path, self.done_path = folder / f"{name}.uint8", folder / f"{name}.done"
        self.shape = (blocks, SUBJECTS, VIEWS, SIZE, SIZE, 3)

    def build(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Draw what is not there yet (about 5 ms a picture); continues after an interruption."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        done = int(self.done_path.read_text()) if self.done_path.is_file() else 0
        pixels = np.memmap(self.path, np.uint8, "r+" if self.path.is_file() else "w+", shape=self.shape)
        for number in range(done, self.blocks):
            block = draw_block(number)
            for i, subject in enumerate(block.subjects):
                for view in range(VIEWS):
                    pixels[number, i, view] = mw.render(subject, block.style_of(view), block.poses[i][view], SIZE)
            pixels.flush()
            self.done_path.write_text(str(number + 1))
            progress(number + 1)

    @cached_property
    def pixels(self) -> np.memmap:
        return np.memmap(self.path, np.uint8, "r", shape=self.shape)

    @cached_property
    def factors(self) -> list[Block]:
        return [draw_block(number) for number in range(self.blocks)]
