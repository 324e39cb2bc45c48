"""Photographs from files: which a folder holds, decoded upright, in RGB and on white."""

from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from lorabench.base import UserError
from lorabench.data.pairs import Reference
from lorabench.engine.record import sha256

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def reference(path: Path, word: str, prompt: str) -> Reference:
    """The image of a file, known by the hash of its bytes; see Reference."""
    return Reference(word, prompt, sha256(path), partial(read_image, path))


def images_in(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def image_paths(folder: Path) -> list[Path]:
    """As `images_in`; raises UserError where there are none."""
    if not (paths := images_in(folder)):
        raise UserError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}); put some there or leave it out")
    return paths


def read_image(path: Path) -> Image.Image:
    """As `flat`; raises UserError for a broken file."""
    try:
        with Image.open(path) as opened:
            return flat(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image; replace it or remove it") from error


def flat(image: Image.Image) -> Image.Image:
    """RGB, upright by its EXIF orientation, transparency on white."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    elif upright.mode.startswith("I;16"):  # which `convert` would clip instead of scaling
        upright = upright.point(lambda value: value * (1 / 256)).convert("L")
    return upright.convert("RGB")
