"""The images on which the micro scorers are trained, rendered once to a memory map.

A block is a grid of 8 subjects (2 classes x 4) in 8 styles (4 families x 2), with 3 photographs of each subject; every
image has its own pose. So subjects repeat across styles and styles across subjects, and a batch can contain the hardest
comparisons: other individuals of the same class in the same style, and other settings of the same family on the same
subject. All factors depend only on the block's number; only pixels are stored.
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

SUBJECTS, STYLES, PHOTOS = 8, 8, 3  # per block
VIEWS = STYLES + PHOTOS
SIZE = 64


@dataclass(frozen=True)
class Block:
    """8 subjects, 8 styles and poses [8][VIEWS]. View j < 8 is style j; the others are photographs."""

    subjects: list[mw.Subject]
    styles: list[mw.Style]
    poses: list[list[mw.Pose]]

    def style_of(self, view: int) -> mw.Style | None:
        """Return the style of a view; None for a photograph."""
        return self.styles[view] if view < STYLES else None


def draw_block(number: int) -> Block:
    """Return the factors of a block. They depend only on its number and are never held-out ones."""
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
    """Return a hash of one image per family, which identifies the current world in file names."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(seed_of("fingerprint"))
    for number, family in enumerate([*mw.FAMILIES, None]):
        subject = mw.sample_subject(rng, mw.CLASSES[number % len(mw.CLASSES)])
        look = mw.sample_style(rng, family) if family else None
        digest.update(mw.render(subject, look, mw.sample_pose(rng), SIZE).tobytes())
    return digest.hexdigest()[:12]


class ScorerBank:
    """The images of `blocks` blocks.

    `pixels` is a memory map, uint8 [blocks, SUBJECTS, VIEWS, SIZE, SIZE, 3]; `factors` has the blocks.
    """

    def __init__(self, folder: Path, blocks: int) -> None:
        self.blocks = blocks
        name = f"scorer_bank-{world_fingerprint()}-{blocks}"
        self.path, self.done_path = folder / f"{name}.uint8", folder / f"{name}.done"
        self.shape = (blocks, SUBJECTS, VIEWS, SIZE, SIZE, 3)

    def build(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Render the missing images (about 5 ms each). After an interruption, this resumes."""
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
        """Return the images."""
        return np.memmap(self.path, np.uint8, "r", shape=self.shape)

    @cached_property
    def factors(self) -> list[Block]:
        """Return the blocks."""
        return [draw_block(number) for number in range(self.blocks)]
