"""Photographs: the image files of a folder, and decoding to upright RGB on white."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from lorabench.base import UserError
from lorabench.data.concepts import Reference
from lorabench.engine.record import sha256

MOST_PIXELS = 512_000_000
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
NO_PHOTOGRAPHS = {"PDF", "MPEG", "EPS", "WMF", "BUFR", "GRIB", "HDF5", "FITS"}  # documents, video, and formats of stubs
COMPANIONS = {
    ".txt",
    ".caption",
    ".json",
    ".yaml",
    ".yml",
    ".md",
    ".csv",
    ".npz",
    ".safetensors",
}  # other files of a dataset
HEIC = {".heic", ".heif", ".hif"}


@cache
def suffixes() -> frozenset[str]:
    """Return the endings of all image formats that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(end for end, name in known.items() if name in Image.OPEN and name not in NO_PHOTOGRAPHS)


def reference(path: Path, word: str, prompt: str) -> Reference:
    """Return the image of a file, identified by the hash of its bytes; see Reference."""
    return Reference(word, prompt, sha256(path), partial(read_image, path))


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder was made by an operating system or a tool: `._x.jpg`, `__MACOSX`."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def images_in(folder: Path) -> list[Path]:
    """Return the image files in a folder, sorted by name, without its subfolders.

    Other files, except captions and settings, are counted and printed to stderr, once per folder.
    """
    found = [path for path in folder.iterdir() if not is_hidden(path)]
    for path in found:
        check_utf8(path)
    files = sorted(path for path in found if path.is_file() or not path.exists())  # with broken links, to report them
    images = [path for path in files if path.suffix.lower() in suffixes() and path.is_file()]
    others = [path for path in files if path not in images and path.suffix.lower() not in COMPANIONS]
    if others:
        report(folder, len(images), tuple(path.name for path in others))
    return images


def check_utf8(path: Path) -> None:
    """Check that the name of a file can be written in reports and keys.

    Raises:
        UserError: If it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise UserError(f"the name {shown} must be UTF-8; rename it") from None


@cache
def report(folder: Path, used: int, others: tuple[str, ...]) -> None:
    """Print the names of files that are left out."""
    names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    print(f"{folder}: used {used} of {used + len(others)} files, left out {names}{advice(others)}", file=sys.stderr)


@cache
def report_folders(folder: Path) -> None:
    """Print the names of subfolders with images, because these images are not used."""
    below = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path)]
    if full := [name for name in below if any(path.suffix.lower() in suffixes() for path in (folder / name).iterdir())]:
        names = ", ".join(full[:3]) + (f" and {len(full) - 3} more" if len(full) > 3 else "")
        print(f"{folder}: left out the images of {len(full)} folders in it, {names}", file=sys.stderr)


def advice(names: tuple[str, ...]) -> str:
    """Return advice on files that were left out, or ""."""
    if any(Path(name).suffix.lower() in HEIC for name in names):
        return "; HEIC needs a converter: pip install pillow-heif, then save the images as JPEG"
    return ""


def image_paths(folder: Path) -> list[Path]:
    """Return the image files in a folder; raises UserError if there are none. See `images_in`."""
    paths = images_in(folder)
    report_folders(folder)
    if not paths:
        raise UserError(f"{folder} must hold an image (.jpg, .png, .webp or another that Pillow reads); put some there")
    return paths


def read_image(path: Path) -> Image.Image:
    """Return the image of a file in RGB, upright, on white.

    Raises:
        UserError: If it is broken or too large.
    """
    try:
        with warnings.catch_warnings(), any_size(), Image.open(path) as opened:
            warnings.simplefilter("ignore", UserWarning)  # on unusual metadata
            if (pixels := opened.width * opened.height) > MOST_PIXELS:
                raise UserError(
                    f"{path} has {pixels / 1e6:.0f} megapixels and must have {MOST_PIXELS / 1e6:.0f} at most; resize it"
                )
            return flat(opened)
    except UserError:
        raise
    except Exception as error:  # decoders raise many kinds: struct.error, IndexError, zlib.error, ...
        if isinstance(error, MemoryError):
            raise
        raise UserError(f"{path} is not a readable image ({kind(error)}); replace it or remove it") from error


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open images above its limit, which is meant for servers that open strangers' files."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def kind(error: Exception) -> str:
    """Return the first line of an error, or its name."""
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__


def flat(image: Image.Image) -> Image.Image:
    """Return the image in RGB, upright by its EXIF orientation, with transparency on white."""
    upright = turned(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        upright = eight_bits(upright)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return upright.convert("RGB")


def turned(image: Image.Image) -> Image.Image:
    """Return the image upright. An orientation that cannot be read is ignored, as are other EXIF values."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:
        orientation = None
    if isinstance(orientation, tuple):  # the tag occurs twice
        orientation = orientation[0] if orientation else None
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        image.load()
        return image
    upright = image.transpose(turn)
    if "transparency" in image.info:
        upright.info["transparency"] = image.info["transparency"]
    return upright


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a grayscale image of 16 or 32 bits or of floats scaled to 8 bits. Pillow's `convert` would clip it.

    In 16-bit images white is 65535. Images of 32 bits have no common white: it is 1 for floats up to 1, 255 for values
    up to 255, 65535 for values up to 65535, and the maximum otherwise.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max(initial=0.0))
    steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,) if ";16" in image.mode else (255.0, 65535.0)
    white = next((step for step in steps if largest <= step), largest)
    gray = Image.fromarray((values.clip(0) * (255 / white)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray
