"""Pictures as text, for a page that fetches nothing: each content once, whatever the number of places that show it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

EMBED = 384  # pixels: larger images are shown reduced; the PNG itself lies beside the page


@dataclass(frozen=True)
class Shelf:
    """texts: "<type>;base64,<bytes>", what stands after "data:image/" of a data URI.  at: path -> which of them."""

    texts: list[str]
    at: dict[Path, int]


def embed(images: Iterable[Path], drawings: Iterable[Path] = ()) -> Shelf:
    """Read all files; drawings keep their size, since their lines and words would suffer from being reduced."""
    how = dict.fromkeys(images, True) | dict.fromkeys(drawings, False)
    with ThreadPoolExecutor() as pool:  # Pillow works outside of Python's lock
        texts = list(pool.map(text, how, how.values()))
    unique = {content: number for number, content in enumerate(dict.fromkeys(texts))}
    return Shelf(list(unique), {path: unique[content] for path, content in zip(how, texts, strict=True)})


def text(path: Path, reduced: bool = True) -> str:
    """The file's own bytes when it is small, WebP of at most EMBED pixels otherwise."""
    if reduced:
        with Image.open(path) as image:
            small = image.convert("RGB") if max(image.size) > EMBED else None
        if small:
            small.thumbnail((EMBED, EMBED), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, "webp", quality=85)
            return f"webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f"png;base64,{base64.b64encode(path.read_bytes()).decode()}"
