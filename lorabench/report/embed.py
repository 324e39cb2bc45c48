"""Images as base64 text, so that report.html needs no other file; equal images are stored once."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

EMBED = 384  # pixels: larger images are downscaled in the page; the original PNG is in the run folder


@dataclass(frozen=True)
class EmbeddedImages:
    """Embedded images.

    Attributes:
        texts: "<type>;base64,<bytes>" of each distinct image, the part of a data URI after "data:image/".
        at: Path -> index in `texts`.
    """

    texts: list[str]
    at: dict[Path, int]


def embed(images: Iterable[Path], drawings: Iterable[Path] = ()) -> EmbeddedImages:
    """Read all files. Figures (`drawings`) keep their size, because downscaling makes lines and text unreadable."""
    how = dict.fromkeys(images, True) | dict.fromkeys(drawings, False)
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL
        texts = list(pool.map(text, how, how.values()))
    unique = {content: number for number, content in enumerate(dict.fromkeys(texts))}
    return EmbeddedImages(list(unique), {path: unique[content] for path, content in zip(how, texts, strict=True)})


def text(path: Path, reduced: bool = True) -> str:
    """Return the file's own bytes if it is small, otherwise a WebP of at most EMBED pixels."""
    if reduced:
        with Image.open(path) as image:
            small = image.convert("RGB") if max(image.size) > EMBED else None
        if small:
            small.thumbnail((EMBED, EMBED), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, "webp", quality=85)
            return f"webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f"png;base64,{base64.b64encode(path.read_bytes()).decode()}"
