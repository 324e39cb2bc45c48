"""Subjects of google/dreambooth in its own layout: dataset/<subject>/NN.jpg and dataset/prompts_and_classes.txt.

Ruiz et al., DreamBooth, CVPR 2023; github.com/google/dreambooth.
"""

from functools import partial
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from lorabench.config import unknown
from lorabench.data.pairs import Concept, Prompts, Reference
from lorabench.errors import UserError
from lorabench.store import sha256

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def subject(root: Path, name: str, prompts: Prompts) -> Concept:
    """One subject; raises UserError for an unknown subject, an empty folder or a missing manifest."""
    classes = read_classes(root / "dataset" / "prompts_and_classes.txt")
    present = sorted(known for known in classes if (root / "dataset" / known).is_dir())
    if name not in present:
        raise UserError(unknown("dataset.subjects", name, present))
    word = classes[name]
    paths = image_paths(root / "dataset" / name)
    images = tuple(Reference(word, prompts.content(word), sha256(path), partial(read_image, path)) for path in paths)
    return Concept(name, "content", word, images, images)


def read_classes(manifest: Path) -> dict[str, str]:
    """{subject: class word} from the CSV block that the manifest starts with."""
    if not manifest.is_file():
        raise UserError(f"{manifest} is missing; type dataset.root=<folder with dreambooth/ and styledrop/>")
    classes: dict[str, str] = {}
    for line in manifest.read_text().splitlines():
        if line.strip() == "Prompts":
            break
        name, comma, word = line.strip().partition(",")
        if comma and name != "subject_name":
            classes[name] = word
    return classes


def image_paths(folder: Path) -> list[Path]:
    """The images of a folder by name; raises UserError where there are none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}); put some there or leave it out")
    return paths


def read_image(path: Path) -> Image.Image:
    """RGB, upright by its EXIF orientation, transparency on white; raises UserError for a broken file."""
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.has_transparency_data:
                layer = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return upright.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} is not a readable image; replace it or remove it") from error
