"""Subjects of google/dreambooth in its layout: dataset/<subject>/NN.jpg and dataset/prompts_and_classes.txt.

Ruiz et al., DreamBooth, CVPR 2023; github.com/google/dreambooth.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from lorabench.base import UserError
from lorabench.config.choices import unknown
from lorabench.data.captions import report_unused
from lorabench.data.concepts import Concept
from lorabench.data.images import image_paths, reference
from lorabench.data.packaged import is_live, packaged
from lorabench.data.scenes import Prompts
from lorabench.data.splits import split
from lorabench.data.text_files import read_text

MANIFEST = "prompts_and_classes.txt"
REPOSITORY = ("dreambooth", "dreambooth-main", "google-dreambooth")  # folder names of clones and of archives
BLOCKS = {"Object Prompts": "object", "Live Subject Prompts": "live"}


@dataclass(frozen=True)
class PromptsAndClasses:
    """The content of prompts_and_classes.txt.

    Args:
        classes: Class word of each subject.
        contexts: Templates such as "a {} in the snow" for "object" and "live" subjects.
    """

    classes: dict[str, str]
    contexts: dict[str, list[str]]


def dataset_folder(root: Path) -> Path:
    """Return the folder `dataset` of a clone in a folder or in a subfolder with one of the repository's names.

    Raises:
        UserError: If there is none.
    """
    for base in (root, *(root / name for name in REPOSITORY)):
        for folder in (base / "dataset", base):
            if (folder / MANIFEST).is_file():
                return folder
    raise UserError(
        f"{root / 'dreambooth' / 'dataset' / MANIFEST} is missing; use dataset.root=<a clone of "
        "github.com/google/dreambooth, or the folder that holds it>"
    )


def read_manifest(path: Path) -> PromptsAndClasses:
    """Read prompts_and_classes.txt.

    The file has three blocks: "Classes" (subject_name,class), then "Object Prompts" and "Live Subject Prompts", each a
    list in Python whose items are 'a {0} {1} in the jungle'.format(unique_token, class_token).

    Raises:
        UserError: With the number of a line that is not in this format.
    """
    classes: dict[str, str] = {}
    contexts: dict[str, list[str]] = {}
    block, listing, start = "", [], 0
    for number, raw in enumerate(read_text(path).splitlines(), 1):
        line = raw.strip()
        if line in ("Classes", "Prompts", *BLOCKS):
            block = line
        elif block == "Classes" and line and line != "subject_name,class":
            name, comma, word = (part.strip().strip('"') for part in line.partition(","))
            if not (name and comma and word):
                raise UserError(f"{path}:{number}: {line!r} is not of the form subject,class; restore the original")
            classes[name] = word
        elif block in BLOCKS and (line.startswith("prompt_list") or listing):
            listing, start = [*listing, line], start or number
            if line.endswith("]"):
                contexts[BLOCKS[block]] = prompt_list("\n".join(listing), path, start)
                listing, start = [], 0
    if not classes:
        raise UserError(f"{path} names no subject below a line 'Classes'; restore the original")
    return PromptsAndClasses(classes, contexts)


def prompt_list(code: str, path: Path, start: int) -> list[str]:
    """Return the templates of one list by parsing its code, without running it. `start` is its line in the file."""
    try:
        [assign] = ast.parse(code).body
        if not (isinstance(assign, ast.Assign) and isinstance(assign.value, ast.List)):
            raise ValueError("not a list")
        found = []
        for item in assign.value.elts:
            if not (isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute)):
                raise ValueError("not a call")
            template = ast.literal_eval(item.func.value)
            if template.count("{0} {1}") != 1:
                raise ValueError("not a template")
            found.append(template.replace("{0} {1}", "{}"))
        return found
    except (SyntaxError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}:{start}: not a list of 'a {{0}} {{1}} ...'.format(unique_token, class_token); restore the original"
        ) from error


def subjects(dataset: Path, manifest: PromptsAndClasses) -> dict[str, str]:
    """Return the class word of each subject that has a folder, in the manifest's order."""
    return {normalize("NFC", name): word for name, word in manifest.classes.items() if folder_of(dataset, name)}


def folder_of(dataset: Path, name: str) -> Path | None:
    """Return the folder of a subject, written in any form of Unicode; None if there is none."""
    forms = [dataset / each for each in (name, normalize("NFC", name), normalize("NFD", name))]
    return next((folder for folder in forms if folder.is_dir()), None)


def subject(dataset: Path, manifest: PromptsAndClasses, name: str, prompts: Prompts, held_out: int = 0) -> Concept:
    """Return a subject.

    Args:
        dataset: Folder of the dataset.
        manifest: Its prompts_and_classes.txt.
        name: The subject's name.
        prompts: Settings of prompts.
        held_out: Number of its images that are references and not trained on.

    Raises:
        UserError: If there is no such subject, or its folder has no image.
    """
    present = subjects(dataset, manifest)
    if name not in present:
        raise UserError(unknown("dataset.subjects", name, sorted(present)))
    word = present[name]
    folder = folder_of(dataset, name)
    assert folder is not None
    paths = image_paths(folder)
    report_unused(tuple(paths))
    stems = [path.stem for path in paths]  # the second of two files with the same stem keeps its ending
    names = [path.name if path.stem in stems[:i] else path.stem for i, path in enumerate(paths)]
    images = [(each, reference(path, word, prompts.content(word))) for each, path in zip(names, paths, strict=True)]
    trained, references = split(name, images, held_out, packaged("near_duplicates").get(name, []))
    live, token = is_live(word), prompts.content_token
    return Concept(name, "content", word, trained, references, live=live, token=token)
