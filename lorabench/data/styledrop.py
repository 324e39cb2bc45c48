"""Styles in the layout of StyleDrop-PyTorch: data/<image> and data/data.json {image: [object, style phrase]}.

Sohn et al., StyleDrop, NeurIPS 2023; github.com/aim-uofa/StyleDrop-PyTorch. A style is one image.
"""

import json
from functools import partial
from pathlib import Path

from lorabench.config import unknown
from lorabench.data.dreambooth import read_image
from lorabench.data.pairs import Concept, Prompts, Reference
from lorabench.errors import UserError
from lorabench.store import sha256


def style(root: Path, name: str, prompts: Prompts) -> Concept:
    """One style by its file's stem ("image_01_05"); raises UserError where it is unknown or its image is missing."""
    manifest = read_manifest(root / "data" / "data.json")
    if name not in manifest:
        raise UserError(unknown("dataset.styles", name, sorted(manifest)))
    file, thing, phrase = manifest[name]
    path = root / "data" / file
    if not path.is_file():
        raise UserError(f"{path} is missing; put it there or leave {name} out of dataset.styles")
    image = Reference(thing, prompts.style(thing), sha256(path), partial(read_image, path))
    return Concept(name, "style", phrase, (image,), (image,))


def read_manifest(path: Path) -> dict[str, tuple[str, str, str]]:
    """{stem: (file, object, style phrase)}; "A bay" becomes "bay", "in glowing style" becomes "glowing style"."""
    if not path.is_file():
        raise UserError(f"{path} is missing; type dataset.root=<folder with dreambooth/ and styledrop/>")
    try:
        entries = json.loads(path.read_text())
        return {
            Path(file).stem: (file, bare(thing), phrase.removeprefix("in "))
            for file, (thing, phrase) in entries.items()
        }
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not of the form {{image: [object, style phrase]}}; restore the original") from error


def bare(thing: str) -> str:
    """The object without its article or its capital: "A bay" -> "bay", "Slice of melon" -> "slice of melon"."""
    return thing.removeprefix("A ") if thing.startswith("A ") else thing[:1].lower() + thing[1:]
