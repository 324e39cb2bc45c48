"""The training pictures of the base model: rendered once, in shards, and read back as memory maps.

Picture i depends on i alone, so shards can be rendered by any number of processes and in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lorabench.data import microworld as mw

SHARD = 4000
PHOTO_SHARE = 0.4
DEVELOPMENT_FROM = 136_000  # earlier pictures were trained on before the development names were chosen


def factors_of(i: int) -> tuple[mw.Subject, mw.Style | None, mw.Pose, np.random.Generator]:
    """Return the subject, style (None: a photograph) and pose of training picture i, and the generator of its caption.

    Two pictures in five are photographs. Pictures from DEVELOPMENT_FROM on keep a margin to the development names.
    """
    rng = np.random.default_rng([int(mw.VERSION), i])
    later = i >= DEVELOPMENT_FROM
    subject, pose = mw.sample_subject(rng, development=later), mw.sample_pose(rng)
    style = None if rng.random() < PHOTO_SHARE else mw.sample_style(rng, development=later)
    return subject, style, pose, rng


def picture(i: int) -> tuple[np.ndarray, str]:
    """Render training picture i, uint8 [64, 64, 3], and write its caption."""
    subject, style, pose, rng = factors_of(i)
    return mw.render(subject, style, pose), mw.caption(subject, style, pose, rng)


def render_shard(folder: Path, shard: int) -> None:
    """Write one shard unless it is there already; the captions come last and mark it as complete."""
    images, captions = folder / f"{shard:04d}.npy", folder / f"{shard:04d}.json"
    if captions.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [picture(shard * SHARD + k) for k in range(SHARD)]
    np.save(images, np.stack([image for image, _ in pairs]))
    partial = captions.with_suffix(".tmp")
    partial.write_text(json.dumps([text for _, text in pairs]))
    partial.rename(captions)


def render(folder: Path, shards: int, workers: int, progress: Callable[[int], object]) -> None:
    """Render all missing shards on `workers` processes; `progress` is told of each picture batch done."""
    from concurrent.futures import ProcessPoolExecutor, as_completed

    missing = [s for s in range(shards) if not (folder / f"{s:04d}.json").exists()]
    progress((shards - len(missing)) * SHARD)
    with ProcessPoolExecutor(workers) as pool:
        for _ in as_completed([pool.submit(render_shard, folder, s) for s in missing]):
            progress(SHARD)


def load(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """All complete shards: memory maps uint8 [SHARD, 64, 64, 3] and the captions in the same order."""
    done = sorted(folder.glob("*.json"))
    if not done:
        raise FileNotFoundError(f"no rendered shards in {folder}: run `python -m lorabench.micro bank` first")
    maps = [np.load(p.with_suffix(".npy"), mmap_mode="r") for p in done]
    return maps, [text for p in done for text in json.loads(p.read_text())]
