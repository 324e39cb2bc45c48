"""Captions in files next to images, as LoRA trainers read them: `1.txt` for `1.jpg`, or a folder's `metadata.jsonl`.

`metadata.jsonl` has the format of Hugging Face's imagefolder datasets: one JSON object per line, with `file_name` and
`text`.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

from lorabench.base import UserError
from lorabench.data.markers import parse
from lorabench.data.text_files import read_text

ENDINGS = (".txt", ".caption")
METADATA = "metadata.jsonl"
TEXT = ("text", "caption", "prompt")  # names of the caption in metadata.jsonl


def caption_of(image: Path) -> str | None:
    """Return the caption of an image from a file next to it, or None.

    Raises:
        UserError: If the caption is empty or cannot be read, or if two captions of the image differ.
    """
    found = {path: read(path) for ending in ENDINGS if (path := image.with_suffix(ending)).is_file()}
    listed = metadata(image.parent).get(image.name)
    if listed is not None:
        found[image.parent / METADATA] = listed
    if len(set(found.values())) > 1:
        raise UserError(f"{image} has two captions, in {' and '.join(map(str, found))}; keep one of them")
    return next((parse(caption).text for caption in found.values()), None)


@cache
def report_unused(images: tuple[Path, ...]) -> None:
    """Print once that captions next to these images are not used."""
    paths = (image.with_suffix(ending) for image in images for ending in ENDINGS)
    found = [path for path in paths if path.is_file()]
    found += [path for path in {image.parent / METADATA: None for image in images} if path.is_file()]
    if found:
        print(
            f"{found[0].parent}: {len(found)} files of captions are not used ({found[0].name}); only dataset=folder "
            "reads captions",
            file=sys.stderr,
        )


def read(path: Path) -> str:
    """Return the text of a caption file without line breaks.

    Raises:
        UserError: If it is empty or not UTF-8.
    """
    text = " ".join(read_text(path).split())
    if not text:
        raise UserError(f"{path} must hold a caption; write one or remove the file")
    return text


@cache
def metadata(folder: Path) -> dict[str, str]:
    """Return the captions of a folder's metadata.jsonl by file name, without entries that have no caption."""
    path, found = folder / METADATA, dict[str, str]()
    if not path.is_file():
        return found
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, texts = entry["file_name"], [entry[key] for key in TEXT if entry.get(key)]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{path}:{number}: must be {{"file_name": ..., "text": ...}}; correct the line') from None
        if texts:
            found[str(name)] = " ".join(str(texts[0]).split())
    return found
