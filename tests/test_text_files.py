"""Manifests, captions and lists of prompts are UTF-8, with or without a byte order mark, in all readers alike."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorabench.base import UserError
from lorabench.data import captions, dreambooth, manifest, styledrop

LINES = {  # a file of each reader, with a name that is not ASCII in its second line
    "own.yaml": "subjects:\n  café: {class: dog, images: a.png}\nstyles:\n  ink: {style: ink style, images: b.png}\n",
    "prompts_and_classes.txt": "Classes\ncafé,dog\n",
    "data.json": '{\n"café.png": ["A dog", "in ink style"]}',
    "metadata.jsonl": '\n{"file_name": "a.png", "text": "a café"}\n',
    "a.txt": "a\ncafé",
}
READERS: dict[str, Callable[[Path], Any]] = {
    "own.yaml": lambda path: sorted(manifest.read(path).subjects),
    "prompts_and_classes.txt": lambda path: sorted(dreambooth.read_manifest(path).classes),
    "data.json": lambda path: sorted(styledrop.read_manifest(path)),
    "metadata.jsonl": lambda path: captions.metadata(path.parent),
    "a.txt": captions.read,
}
FOUND = {"own.yaml": ["café"], "prompts_and_classes.txt": ["café"], "data.json": ["café"],
         "metadata.jsonl": {"a.png": "a café"}, "a.txt": "a café"}  # fmt: skip


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    captions.metadata.cache_clear()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "bom"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("name", LINES)
def test_utf8_is_read(tmp_path: Path, name: str, ends: str, mark: bytes) -> None:
    (tmp_path / name).write_bytes(mark + LINES[name].replace("\n", ends).encode())
    assert READERS[name](tmp_path / name) == FOUND[name]


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 2), ("cp1252", 2), ("utf-16", 1), ("utf-32", 1)])
@pytest.mark.parametrize("name", LINES)
def test_other_encodings_are_named_with_their_line(tmp_path: Path, name: str, encoding: str, line: int) -> None:
    (tmp_path / name).write_bytes(LINES[name].encode(encoding))
    with pytest.raises(UserError) as error:
        READERS[name](tmp_path / name)
    message = f"{tmp_path / name}:{line}: must be text in UTF-8; save the file in that encoding"
    assert str(error.value) == message


def test_utf16_without_mark_is_named(tmp_path: Path) -> None:
    """Every second byte of ASCII in UTF-16 is 0, which is valid UTF-8."""
    (tmp_path / "data.json").write_bytes(json.dumps({"a.png": ["A dog", "ink style"]}).encode("utf-16-le"))
    with pytest.raises(UserError, match=r"data\.json:1: must be text in UTF-8"):
        styledrop.read_manifest(tmp_path / "data.json")
