"""Base class of judges.

A judge answers one question at a time in text. The answers of all judges are read by the same rules
(`lorabench.scoring.judges.answers`): those of the ground truth, of a model and of a fake in tests.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.scoring.judges.questions import Ask

if TYPE_CHECKING:
    from PIL import Image


class Comparison(ABC):
    """A judge of images.

    Attributes:
        parallel: Questions that may be answered at the same time, by threads.
    """

    parallel: int = 1

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the name of the judge in tables."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything but the question and the images that changes an answer, as JSON; never a key or a URL."""

    @abstractmethod
    def answer(self, ask: Ask) -> str:
        """Return the raw answer.

        Raises:
            UserError: If there is none, as after the last attempt at an endpoint.
        """


def shown(path: Path, size: int) -> Image.Image:
    """Return the image as a model sees it: RGB, scaled so that its longer side has `size` pixels, without metadata."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image).convert("RGB")
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        bare = Image.new("RGB", (width, height))
        bare.paste(image.resize((width, height), Image.Resampling.LANCZOS))
        return bare


def png(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
