"""Small folders in the layouts of public datasets, and a user's manifest, with invented images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

CLASSES = {
    "backpack_dog": "backpack", "cat": "cat", "dog": "dog", "dog5": "dog", "teapot": "teapot", "bear_plushie":
    "stuffed animal", "vase": "vase",
}  # fmt: skip
STYLES = {
    "image_01_05": ["A village", "in oil painting style"],
    "image_01_07": ["A portrait of a person", "in oil painting style"],
    "image_02_06": ["A mushroom", "in glowing style"],
}
CONTEXTS = {
    "object": ["a {} in the jungle", "a {} with the Eiffel Tower in the background", "a cube shaped {}"],
    "live": ["a {} in the jungle", "a {} wearing a santa hat"],
}
BLOCKS = {"object": "Object Prompts", "live": "Live Subject Prompts"}


def paint(path: Path, number: int) -> Path:
    """Write an image that is unique for the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12 + number % 3, 10), (number % 256, number // 256, 99)).save(path)
    return path


def manifest(classes: Mapping[str, str], contexts: Mapping[str, Sequence[str]]) -> str:
    """Return prompts_and_classes.txt of github.com/google/dreambooth with these classes and prompts."""
    lines = ["Classes", "", "subject_name,class", *(f"{name},{word}" for name, word in classes.items())]
    lines += ["", "Prompts", ""]
    for kind, templates in contexts.items():
        texts = [template.format("{0} {1}") for template in templates]
        items = ",\n".join(f"{text!r}.format(unique_token, class_token)" for text in texts)
        lines += [BLOCKS[kind], "", "prompt_list = [", items, "]", ""]
    return "\n".join(lines)


def dreambooth(root: Path, classes: Mapping[str, str] = CLASSES, images: int = 5) -> Path:
    """Write the layout of github.com/google/dreambooth; `vase` is in the list of classes but has no folder."""
    number = 0
    for name in classes:
        for index in range(images if name != "vase" else 0):
            number += 1
            paint(root / "dataset" / name / f"{index:02d}.jpg", number)
    (root / "dataset" / "prompts_and_classes.txt").write_text(manifest(classes, CONTEXTS))
    return root


def styledrop(root: Path) -> Path:
    """Write the layout of github.com/zideliu/StyleDrop-PyTorch."""
    for number, name in enumerate(STYLES):
        paint(root / "data" / f"{name}.jpg", 1000 + number)
    (root / "data" / "data.json").write_text(json.dumps({f"{name}.jpg": words for name, words in STYLES.items()}))
    return root
