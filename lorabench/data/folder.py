"""Subjects and styles from a user's own images, which a manifest lists (lorabench/data/manifest.py)."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from lorabench.base import UserError
from lorabench.config.choices import unknown
from lorabench.data.concepts import Concept, Reference, distinct
from lorabench.data.images import read_image
from lorabench.data.manifest import Entry, Manifest, Shot
from lorabench.data.markers import parse
from lorabench.data.packaged import is_live
from lorabench.data.scenes import Prompts
from lorabench.data.splits import split
from lorabench.data.styledrop import PICTURE
from lorabench.engine.record import sha256


def live(entry: Entry) -> bool:
    """Return whether a subject is a live one: as the manifest sets it, else by its class word."""
    return is_live(entry.word) if entry.live is None else entry.live


def subject(manifest: Manifest, name: str, prompts: Prompts, held_out: int = 0) -> Concept:
    """Return a subject. Its references are those of the manifest, else `held_out` of its images, else all images.

    Raises:
        UserError: If the manifest has no such subject.
    """
    entry = entry_of(manifest.subjects, name, "dataset.subjects")
    word = entry.word
    images = [(str(i), reference(shot, word, prompts.content(word))) for i, shot in enumerate(entry.images)]
    trained, references = split(name, images, 0 if entry.references else held_out)
    if entry.references:
        references = distinct(reference(shot, word, prompts.content(word)) for shot in entry.references)
    repeats = {image: shot.repeats for (_, image), shot in zip(images, entry.images, strict=True)}
    weighted = tuple(replace(image, weight=repeats[image]) for image in trained)
    return Concept(
        name, "content", word, weighted, references,
        live=live(entry), contexts=entry.prompts, token=prompts.content_token,
    )  # fmt: skip


def style(manifest: Manifest, name: str, prompts: Prompts) -> Concept:
    """Return a style. Its references are those of the manifest, else all of its images.

    Raises:
        UserError: If the manifest has no such style.
    """
    entry = entry_of(manifest.styles, name, "dataset.styles")

    def image(shot: Shot) -> Reference:
        thing = shot.shows or PICTURE
        return reference(shot, thing, prompts.style(thing))

    images = tuple(image(shot) for shot in entry.images)
    weighted = tuple(replace(each, weight=shot.repeats) for each, shot in zip(images, entry.images, strict=True))
    references = distinct(map(image, entry.references)) or distinct(images)
    return Concept(name, "style", entry.word, weighted, references, token=prompts.style_token)


def entry_of(entries: dict[str, Entry], name: str, key: str) -> Entry:
    """Return an entry of the manifest by name; raises UserError if there is none."""
    if name not in entries:
        raise UserError(unknown(key, name, sorted(entries)))
    return entries[name]


def reference(shot: Shot, word: str, prompt: str) -> Reference:
    """Return the image of a manifest's entry; its caption is the entry's, else the prompt."""
    return Reference(word, parse(shot.caption or prompt).text, sha256(shot.path), partial(read, shot.path, shot.line))


def read(path: Path, line: str) -> Image.Image:
    """Return an image; the error of a broken one has its line in the manifest."""
    try:
        return read_image(path)
    except UserError as error:
        raise UserError(f"{line}: {error}") from error
