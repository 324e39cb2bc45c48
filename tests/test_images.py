"""Images of users: every format, unusual EXIF data, 16 and 32 bits, hidden and other files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorabench.base import UserError
from lorabench.data.images import image_paths, images_in, read_image, report
from lorabench.data.styledrop import plain

RAMP = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (8, 1))
EIGHT = np.tile(np.linspace(0, 255, 96), (8, 1))


def with_exif(path: Path, tags: list[tuple[int, int, int, bytes]], tail: bytes = b"") -> Path:
    """Return a JPEG, black left and white right, whose EXIF directory has these (tag, type, count, value)."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 48:] = 255
    Image.fromarray(pixels).save(path, format="JPEG")
    jpeg = path.read_bytes()
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHI4s", *tag) for tag in tags)
    payload = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + directory + struct.pack("<I", 0) + tail
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:])
    return path


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))  # orientation 6: the right side is at the bottom


@pytest.mark.parametrize(
    ("tags", "tail"),
    [
        ([TURNED], b""),
        ([TURNED, (0x011A, 10, 1, struct.pack("<I", 38))], struct.pack("<ii", -1, 0)),  # a signed rational of -1/0
        ([(0x0112, 3, 2, struct.pack("<HH", 6, 6)), (0x011A, 2, 1, bytes(4))], b""),  # two orientations
    ],
)
def test_orientation_is_applied_whatever_else_exif_has(tmp_path: Path, tags, tail: bytes) -> None:
    image = np.asarray(read_image(with_exif(tmp_path / "a.jpg", tags, tail)))
    assert image.shape == (96, 64, 3)
    assert image[:40].mean() < 10 and image[56:].mean() > 245


@pytest.mark.parametrize("tags", [[(0x0112, 2, 4, b"abc\0")], [(0x0112, 3, 1, struct.pack("<HH", 99, 0))]])
def test_orientation_that_does_not_exist_is_none(tmp_path: Path, tags) -> None:
    assert read_image(with_exif(tmp_path / "a.jpg", tags)).size == (96, 64)


@pytest.mark.parametrize(
    ("image", "file"),
    [
        (Image.fromarray(RAMP), "gray16.png"),
        (Image.fromarray(RAMP), "gray16.tif"),
        (Image.fromarray(RAMP.astype(np.int32)), "gray32.tif"),
        (Image.fromarray((RAMP / 65535).astype(np.float32)), "unit.tif"),
        (Image.fromarray(EIGHT.astype(np.float32)), "float.tif"),
        (Image.fromarray(EIGHT.astype(np.int32)), "small32.tif"),
    ],
)
def test_deep_grayscale_is_scaled(tmp_path: Path, image: Image.Image, file: str) -> None:
    image.save(tmp_path / file)
    found = np.asarray(read_image(tmp_path / file)).astype(float)
    assert found.shape == (8, 96, 3)
    assert np.abs(found - EIGHT[..., None]).max() <= 1


def test_deep_grayscale_keeps_its_transparency(tmp_path: Path) -> None:
    """The value 0 is transparent, so the first column is white; all others are scaled."""
    Image.fromarray(RAMP).save(tmp_path / "a.png", transparency=0)
    found = np.asarray(read_image(tmp_path / "a.png")).astype(float)
    assert (found[:, 0] == 255).all()
    assert np.abs(found[:, 1:] - EIGHT[:, 1:, None]).max() <= 1


@pytest.mark.parametrize(
    "ending", ["jpg", "jpeg", "jfif", "png", "bmp", "webp", "gif", "tif", "tiff", "ppm", "tga", "ico"]
)
def test_every_format_of_folder_is_used(tmp_path: Path, ending: str) -> None:
    Image.new("RGB", (32, 32), "teal").save(tmp_path / f"a.{ending}")
    [path] = images_in(tmp_path)
    assert np.abs(np.asarray(read_image(path)).astype(int) - (0, 128, 128)).max() <= 6


def test_files_left_out_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.cache_clear()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("b.heic", "c.mp4", "a.txt", ".hidden.png", "._a.jpg"):
        (tmp_path / name).write_bytes(b"something")
    assert [path.name for path in images_in(tmp_path)] == ["a.png"]
    images_in(tmp_path)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "used 1 of 3 files, left out b.heic, c.mp4" in line
    assert "pip install pillow-heif" in line


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40), b"GIF89a" + bytes(9)])
def test_file_that_cannot_be_decoded_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png is not a readable image") as error:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(error.value)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a caption")
    with pytest.raises(UserError, match="must hold an image"):
        image_paths(tmp_path)


def test_hidden_folders_are_not_styles_and_stems_do_not_collide(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    for folder in (".ipynb_checkpoints", "__MACOSX", "crayon"):
        (tmp_path / folder).mkdir()
        picture.save(tmp_path / folder / "a.png")
    picture.save(tmp_path / "oil.png")
    picture.save(tmp_path / "oil.jpg")
    picture.save(tmp_path / "._oil.jpg", format="JPEG")
    assert {name: [path.name for path in paths] for name, paths in plain(tmp_path).items()} == {
        "oil": ["oil.jpg"], "oil.png": ["oil.png"], "crayon": ["a.png"],
    }  # fmt: skip
