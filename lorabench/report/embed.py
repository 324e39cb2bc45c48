"""Images as base64 text, so that report.html needs no other file; equal images are stored once.

If all images exceed BUDGET, the page has small copies of the first ones, and the files next to it are linked for the
others. Then it must be moved together with its run folders.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

EMBED = 384  # pixels: larger images are downscaled in the page; the original PNG is in the run folder


BUDGET = 7_000_000  # characters of all embedded images
BATCH = 256  # images that are read together
THUMBNAIL = 75  # WebP quality of small copies; a rendered image of 64 px takes about 2 KB


@dataclass(frozen=True)
class EmbeddedImages:
    """Embedded images.

    Attributes:
        texts: "<type>;base64,<bytes>" of each distinct image, the part of a data URI after "data:image/"; or a relative
            URL, which begins with "./".
        at: Path -> index in `texts`.
        linked: Number of images that are linked.
    """

    texts: list[str]
    at: dict[Path, int]
    linked: int = 0


def embed(
    images: Iterable[Path],
    drawings: Iterable[Path] = (),
    link: Callable[[Path], str | None] = lambda path: None,
) -> EmbeddedImages:
    """Read all files, or the first ones if all exceed BUDGET.

    Args:
        images: Generated images and references, the most important first.
        drawings: Figures. They are always embedded and keep their size, because downscaling makes lines unreadable.
        link: Function that returns the relative URL of a file; None if the page cannot have one.
    """
    images, drawings = list(dict.fromkeys(images)), list(dict.fromkeys(drawings))
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL
        figures = dict(zip(drawings, pool.map(lambda path: text(path, False), drawings), strict=True))
        if sum(path.stat().st_size for path in images) * 4 / 3 <= BUDGET or not all(map(link, images)):
            texts = dict(zip(images, pool.map(text, images), strict=True))
        else:
            texts, left = {}, BUDGET
            for start in range(0, len(images), BATCH):
                batch = images[start : start + BATCH] if left > 0 else []
                for path, small in zip(batch, pool.map(thumbnail, batch), strict=True):
                    texts[path] = small
                    left -= len(small)
    linked = [path for path in images if path not in texts]
    texts |= figures | {path: link(path) or "" for path in linked}
    unique = {content: number for number, content in enumerate(dict.fromkeys(texts.values()))}
    return EmbeddedImages(list(unique), {path: unique[content] for path, content in texts.items()}, len(linked))


def text(path: Path, reduced: bool = True) -> str:
    """Return the file's own bytes if it is small, otherwise a WebP of at most EMBED pixels."""
    if reduced:
        with Image.open(path) as image:
            if max(image.size) > EMBED:
                return webp(image, 85)
    return f"png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def thumbnail(path: Path) -> str:
    """Return a WebP of at most EMBED pixels."""
    with Image.open(path) as image:
        return webp(image, THUMBNAIL)


def webp(image: Image.Image, quality: int) -> str:
    """Return an image of at most EMBED pixels as WebP."""
    small, buffer = image.convert("RGB"), io.BytesIO()
    small.thumbnail((EMBED, EMBED), Image.Resampling.LANCZOS)
    small.save(buffer, "webp", quality=quality)
    return f"webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
