"""The training images of the base model: rendered once, in shards, and read as memory maps.

Image i depends only on i, so shards can be rendered by any number of processes and in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.engine.record import write_whole

SHARD = 4000
PHOTO_SHARE = 0.4
DEVELOPMENT_FROM = 136_000  # earlier images were used for training before the development names were chosen
HELDOUT_FROM = 90_000_000  # images that are never used for training (heldout.py)
WHOLE_SHARE = 0.5  # share of captions between both that omit no detail, so that words for marks are learned sooner


def factors_of(i: int) -> tuple[mw.Subject, mw.Style | None, mw.Pose, np.random.Generator]:
    """Return the subject, style (None: a photograph) and pose of training image i, and the generator of its caption.

    Two images in five are photographs. Images from DEVELOPMENT_FROM on keep a margin to the development names.
    """
    rng = np.random.default_rng([int(mw.VERSION), i])
    later = i >= DEVELOPMENT_FROM
    subject, pose = mw.sample_subject(rng, development=later), mw.sample_pose(rng)
    style = None if rng.random() < PHOTO_SHARE else mw.sample_style(rng, development=later)
    return subject, style, pose, rng


def picture(i: int) -> tuple[np.ndarray, str]:
    """Return training image i, uint8 [64, 64, 3], and its caption."""
    subject, style, pose, rng = factors_of(i)
    whole = DEVELOPMENT_FROM <= i < HELDOUT_FROM and rng.random() < WHOLE_SHARE
    return mw.render(subject, style, pose), mw.caption(subject, style, pose, None if whole else rng)


def render_shard(folder: Path, shard: int) -> None:
    """Write one shard if it does not exist. The captions are written last and mark it as complete."""
    images, captions = folder / f"{shard:04d}.npy", folder / f"{shard:04d}.json"
    if captions.exists():
        return
    pairs = [picture(shard * SHARD + k) for k in range(SHARD)]
    save(images, np.stack([image for image, _ in pairs]))
    write_whole(captions, lambda draft: draft.write_text(json.dumps([text for _, text in pairs])))


def save(path: Path, array: np.ndarray) -> None:
    """Write an array as a whole file (.npy)."""

    def write(draft: Path) -> None:
        with draft.open("wb") as file:  # np.save adds .npy to the names of paths
            np.save(file, array)

    write_whole(path, write)


def render(folder: Path, shards: range, workers: int, progress: Callable[[int], object]) -> None:
    """Render the missing shards with `workers` processes; call `progress` with numbers of finished images."""
    from concurrent.futures import ProcessPoolExecutor, as_completed

    missing = [s for s in shards if not (folder / f"{s:04d}.json").exists()]
    progress((len(shards) - len(missing)) * SHARD)
    with ProcessPoolExecutor(workers) as pool:
        for done in as_completed([pool.submit(render_shard, folder, s) for s in missing]):
            done.result()
            progress(SHARD)


def load(folder: Path) -> list[np.ndarray]:
    """Return memory maps of all complete shards, uint8 [SHARD, 64, 64, 3]."""
    done = sorted(folder.glob("*.json"))
    if not done:
        raise UserError(f"--work={folder.parent} has no images; run `python -m pretraining bank` first")
    return [load_shard(path)[0] for path in done]


def load_shard(captions: Path) -> tuple[np.ndarray, list[str]]:
    """Return the memory map of a shard and its captions."""
    return np.load(captions.with_suffix(".npy"), mmap_mode="r"), json.loads(captions.read_text())
