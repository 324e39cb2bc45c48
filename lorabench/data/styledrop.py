"""Styles as images: StyleDrop-PyTorch's data/<image> and data/data.json {image: [object, style phrase]}, or any folder
in which each image is a style and each subfolder is a style of several images.

Sohn et al., StyleDrop, NeurIPS 2023; github.com/zideliu/StyleDrop-PyTorch (or aim-uofa/StyleDrop-PyTorch).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from lorabench.base import UserError
from lorabench.config.choices import unknown
from lorabench.data.captions import report_unused
from lorabench.data.concepts import Concept, distinct
from lorabench.data.images import images_in, is_hidden, reference, suffixes
from lorabench.data.packaged import packaged
from lorabench.data.scenes import Prompts
from lorabench.data.text_files import read_text

MANIFEST = "data.json"
REPOSITORY = ("styledrop", "StyleDrop-PyTorch", "StyleDrop-PyTorch-main", "styles")
FOLDER = "-folder"  # ending of a subfolder's style name if an image has the same name
PICTURE = "picture"  # object of an image whose content is unknown


@dataclass(frozen=True)
class Look:
    """A style.

    Args:
        paths: Its images.
        thing: Object in the images ("bay").
        phrase: Style phrase ("watercolor painting style").
    """

    paths: tuple[Path, ...]
    thing: str
    phrase: str


def style_folder(root: Path) -> Path:
    """Return the folder of style images: `root` or a subfolder with a known name, of a clone or with plain images.

    Raises:
        UserError: If there is none.
    """
    bases = (*(root / name for name in REPOSITORY), root)
    for base in bases:
        for folder in (base / "data", base):
            if (folder / MANIFEST).is_file():
                return folder
    for base in bases:
        for folder in (base / "data", base):
            if folder.is_dir() and plain(folder):
                return folder
    raise UserError(
        f"{root / 'styledrop' / 'data' / MANIFEST} is missing; use dataset.style_root=<a clone of "
        "github.com/zideliu/StyleDrop-PyTorch, a folder of style images, or a folder that holds one>"
    )


def plain(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the styles of a folder by name: an image each, or the images of a subfolder."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in images_in(folder):
        stem, whole = normalize("NFC", path.stem), normalize("NFC", path.name)
        found[stem if stem not in found else whole] = (
            path,
        )  # the second of two files with the same stem keeps its ending
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path)):
        if paths := images_in(below):
            name = normalize("NFC", below.name)
            found[name if name not in found else f"{name}{FOLDER}"] = tuple(paths)
    return found


def looks(folder: Path) -> dict[str, Look]:
    """Return every style by its name (the stem of a file or the name of a subfolder), those of the manifest first."""
    found = read_manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    for name, paths in plain(folder).items():
        if name not in found:
            thing, phrase = packaged("styledrop").get(name, (PICTURE, phrase_of(name)))
            found[name] = Look(paths, bare(thing), phrase.removeprefix("in "))
    return found


def style(styles: dict[str, Look], name: str, prompts: Prompts) -> Concept:
    """Return a style.

    Raises:
        UserError: If there is no such style, or its image is missing.
    """
    if name not in styles:
        raise UserError(unknown("dataset.styles", name, sorted(styles)))
    look = styles[name]
    if missing := next((path for path in look.paths if not path.is_file()), None):
        raise UserError(f"{missing} is missing; put it there or leave {name} out of dataset.styles")
    report_unused(look.paths)
    images = tuple(reference(path, look.thing, prompts.style(look.thing)) for path in look.paths)
    return Concept(name, "style", look.phrase, images, distinct(images), token=prompts.style_token)


def read_manifest(path: Path) -> dict[str, Look]:
    """Return the styles of data.json by stem; "A bay" becomes "bay", "in glowing style" becomes "glowing style"."""
    try:
        entries = json.loads(read_text(path))
        return {
            normalize("NFC", Path(file).stem): Look((path.parent / file,), bare(thing), phrase.removeprefix("in "))
            for file, (thing, phrase) in entries.items()
        }
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}; restore the original") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not of the form {{image: [object, style phrase]}}; restore the original") from error


def bare(thing: str) -> str:
    """Return the object without article or capital: "A bay" -> "bay", "Slice of melon" -> "slice of melon"."""
    return thing.removeprefix("A ") if thing.startswith("A ") else thing[:1].lower() + thing[1:]


def phrase_of(name: str) -> str:
    """Return the style phrase for the name of a file or folder.

    >>> phrase_of("oil_painting2"), phrase_of("kid crayon style")
    ('oil painting style', 'kid crayon style')
    """
    name = name.removesuffix(FOLDER)
    name = Path(name).stem if Path(name).suffix.lower() in suffixes() else name
    words = re.sub(r"[\s_-]*\d+$", "", name).replace("_", " ").replace("-", " ").strip() or name
    return words if words.endswith("style") else f"{words} style"
