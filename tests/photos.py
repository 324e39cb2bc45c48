"""Small folders in the layouts of public datasets, and a user's manifest, with invented images."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
PROMPTS = """
Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} with the Eiffel Tower in the background'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a santa hat'.format(unique_token, class_token)
]
"""


def paint(path: Path, number: int) -> Path:
    """Write an image that is unique for the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12 + number % 3, 10), (number % 256, number // 256, 99)).save(path)
    return path


def dreambooth(root: Path, classes: Mapping[str, str] = CLASSES, images: int = 5) -> Path:
    """Write the layout of github.com/google/dreambooth; `vase` is in the list of classes but has no folder."""
    lines = ["Classes", "", "subject_name,class", *(f"{name},{word}" for name, word in classes.items())]
    number = 0
    for name in classes:
        for index in range(images if name != "vase" else 0):
            number += 1
            paint(root / "dataset" / name / f"{index:02d}.jpg", number)
    (root / "dataset" / "prompts_and_classes.txt").write_text("\n".join(lines) + "\n" + PROMPTS)
    return root


def styledrop(root: Path) -> Path:
    """Write the layout of github.com/zideliu/StyleDrop-PyTorch."""
    for number, name in enumerate(STYLES):
        paint(root / "data" / f"{name}.jpg", 1000 + number)
    (root / "data" / "data.json").write_text(json.dumps({f"{name}.jpg": words for name, words in STYLES.items()}))
    return root
