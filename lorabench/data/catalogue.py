"""The pairs of the configured dataset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lorabench.base import UserError
from lorabench.config.dataset_schemas import (
    DatasetSpec,
    DreamBoothStyleDropSpec,
    FolderSpec,
    MicroworldSpec,
    StylisedSpec,
    WorldSpec,
)
from lorabench.data.concepts import Concept, Role
from lorabench.data.contexts import with_grounds, with_scenes
from lorabench.data.pairs import Pair, pair
from lorabench.data.scenes import Prompts

NAME_MAX = 255  # bytes; limit of file systems
LONGEST_ENDING = ".safetensors"


@dataclass(frozen=True)
class Shelf:
    """The content of a dataset of photographs, before any image is read.

    Args:
        subjects: Whether a subject is alive, by name.
        styles: Names of the styles.
        load: Function that returns the concept of a role and name.
        contexts: The dataset's own scenes for "object" and "live" subjects.
    """

    subjects: dict[str, bool]
    styles: list[str]
    load: Callable[[Role, str], Concept]
    contexts: Mapping[str, Sequence[str]]


def load_pairs(spec: DatasetSpec, prompts: Prompts) -> list[Pair]:
    """Return all pairs of the configured subjects and styles. A name "a+b" is a group of concepts in one image.

    Every image is decoded once, so that a broken file is found before any training.

    Raises:
        UserError: If a name is not valid, or an image is missing or broken.
    """
    if isinstance(spec, WorldSpec):
        return microworld(spec, prompts)
    from lorabench.data.selection import select

    shelf = public(spec, prompts) if isinstance(spec, DreamBoothStyleDropSpec) else own(spec, prompts)
    load = cache(shelf.load)
    pairs = []
    for contents, styles in select(spec, shelf.subjects, shelf.styles):
        if twice := set(contents) & set(styles):
            raise UserError(f"{twice.pop()} is a subject and a style; rename the style's file or folder")
        found = pair(tuple(load("content", n) for n in contents), tuple(load("style", n) for n in styles), prompts)
        pairs.append(with_scenes(found, prompts, shelf.contexts))
    for found in pairs:
        check_name(found.name)
    images = {image.sha256: image for p in pairs for c in p.concepts for image in (*c.images, *c.references)}
    for image in images.values():
        image.load()
    return pairs


def check_name(name: str) -> None:
    """Check that files of a run can have the name of a pair.

    Raises:
        UserError: If it is too long or not UTF-8.
    """
    try:
        size = len(f"{name}{LONGEST_ENDING}".encode())
    except UnicodeEncodeError:
        shown = name.encode(errors="backslashreplace").decode()
        raise UserError(f"the name {shown} must be UTF-8; rename the file or folder") from None
    if size > NAME_MAX:
        over = size - NAME_MAX
        raise UserError(f"the name {name} must be shorter by {over} bytes, for files of a run; rename file or folder")


def microworld(spec: WorldSpec, prompts: Prompts) -> list[Pair]:
    """Return the pairs of a microworld dataset."""
    from lorabench.data import microworld_pairs as world
    from lorabench.data.matching import select_world
    from lorabench.data.microworld.captions import PLACES

    if isinstance(spec, StylisedSpec):
        from lorabench.data import microworld_stylised

        if prompts.contexts != "none":
            raise UserError(f"dataset={spec.name} has scenes of its own; leave prompts.contexts out")
        return microworld_stylised.load(spec, prompts)
    assert isinstance(spec, MicroworldSpec)
    subject = cache(lambda name: world.subject(name, spec.content_images, spec.references, prompts))
    style = cache(lambda name: world.style(name, spec.style_images, spec.references, prompts))
    pairs = [
        pair(tuple(map(subject, contents)), tuple(map(style, styles)), prompts)
        for contents, styles in select_world(spec)
    ]
    return [with_grounds(each, prompts, PLACES) for each in pairs]


def public(spec: DreamBoothStyleDropSpec, prompts: Prompts) -> Shelf:
    """Return the content of clones of google/dreambooth and StyleDrop-PyTorch, or of folders like them."""
    from lorabench.data import dreambooth, packaged, styledrop

    dataset = dreambooth.dataset_folder(Path(spec.root).expanduser())
    manifest = dreambooth.read_manifest(dataset / dreambooth.MANIFEST)
    looks = styledrop.looks(styledrop.style_folder(Path(spec.style_root or spec.root).expanduser()))

    def load(role: Role, name: str) -> Concept:
        if role == "style":
            return styledrop.style(looks, name, prompts)
        return dreambooth.subject(dataset, manifest, name, prompts, spec.held_out)

    present = dreambooth.subjects(dataset, manifest)
    live = {name: packaged.is_live(word) for name, word in present.items()}
    return Shelf(live, list(looks), load, manifest.contexts)


def own(spec: FolderSpec, prompts: Prompts) -> Shelf:
    """Return the content of the user's own images with their manifest."""
    from lorabench.data import folder
    from lorabench.data.manifest import read

    manifest = read(Path(spec.manifest).expanduser())

    def load(role: Role, name: str) -> Concept:
        if role == "style":
            return folder.style(manifest, name, prompts)
        return folder.subject(manifest, name, prompts, spec.held_out)

    live = {name: folder.live(entry) for name, entry in manifest.subjects.items()}
    return Shelf(live, list(manifest.styles), load, {})


def aligned(content: Concept, style: Concept, prompt: str) -> Concept:
    """Return a subject of the microworld before and after styling, in one image as in the publication."""
    from lorabench.data import microworld_pairs as world

    return world.aligned(content, style, 1, prompt)


def with_own_images(pair: Pair, images: int) -> Pair:
    """Return a pair of stylized images with photographs of its subject and other subjects in its style instead."""
    from lorabench.data import microworld_stylised

    return microworld_stylised.with_own_images(pair, images)


def world_version(spec: DatasetSpec) -> str:
    """Return the microworld's version, which every row of scores has; empty for photographs."""
    if not isinstance(spec, WorldSpec):
        return ""
    from lorabench.data import microworld

    return microworld.VERSION
