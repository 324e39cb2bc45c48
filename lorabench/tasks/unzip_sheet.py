"""The contact sheet of task=unzip: images by both LoRAs together and by each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lorabench.base import seed_of
from lorabench.data.concepts import ROLES, Reference
from lorabench.data.microworld.captions import PLACES
from lorabench.data.microworld.factors import CLASSES
from lorabench.data.scenes import Scene
from lorabench.report.contact_sheet import Cell, Strip, opened, sheet
from lorabench.tasks.unzip_request import Unzip
from lorabench.tasks.unzip_words import Words

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter
    from lorabench.models.model import DiffusionModel
    from lorabench.sampling.parts import Parts

SHOWN = 3  # scenes of the content, subjects of the style, and recombinations
SCENES = ("in the snow", "on the beach", "on a wooden table")
SUBJECTS = ("dog", "house", "car", "cat")


def page(
    unzip: Unzip,
    model: DiffusionModel,
    adapters: Sequence[Adapter],
    words: Words,
    images: Sequence[Reference],
    folder: Path,
    looks: Mapping[int, float],
    progress: Callable[[float], None],
) -> Image.Image:
    """Generate the images of the sheet and put them together.

    Args:
        adapters: Content and style, with their merge vectors as masks.
        folder: Folder with the images of the looks.
        looks: Consistency of the reconstruction by step.
        progress: Called with the cost of the images done.
    """
    from lorabench.lora.export import export
    from lorabench.sampling.generate import generate, generate_by_rule

    spec, done = unzip.generation, 0

    def advance(count: int) -> None:
        progress((done + count) * spec.steps * 2.0)

    def seeds(texts: Sequence[str]) -> list[int]:
        return [seed_of("sheet", index, text, unzip.seed) for index, text in enumerate(texts)]

    def single(adapter: Adapter, prompts: Sequence[str]) -> list[Image.Image]:
        nonlocal done
        if not prompts:
            return []
        made = generate(model, [adapter], prompts, seeds(prompts), spec, unzip.trainer, progress=advance)
        done += len(prompts)
        return pictures(made)

    def together(scenes: Sequence[Scene]) -> list[Image.Image]:
        nonlocal done
        prompts = [scene.prompt for scene in scenes]
        made = generate_by_rule(
            model, unzip.method.sampling, export(adapters), parts, scenes, seeds(prompts), spec, unzip.trainer, advance
        )
        done += len(prompts)
        return pictures(made)

    def parts() -> Parts:
        found = unzip.method.merge.parts(adapters, ROLES, None)
        assert found is not None
        return found

    places, subjects = places_of(unzip), subjects_of(unzip, words)
    full, recombined = words.scene(), recombinations(unzip, words)
    exact = together([full, *recombined])
    file = single(export(adapters), [full.prompt])
    content = [f"{words.content} {place}" for place in places]
    style = [words.in_style(f"a {subject}") for subject in subjects]
    rows = [
        Strip(
            "image and reconstruction",
            [
                *(Cell(each.load(), "image") for each in images[:SHOWN]),
                Cell(exact[0], f"both, three prompts: {full.prompt}"),
                Cell(file[0], f"joint.safetensors: {full.prompt}"),
            ],
        ),
        Strip("content by itself", cells(single(adapters[0].unmasked(), content), content)),
        Strip("style by itself", cells(single(adapters[1].unmasked(), style), style)),
        Strip("recombination", cells(exact[1:], [scene.prompt for scene in recombined])),
    ]
    if looks:
        steps = sorted(looks)[:: -(-len(looks) // 5)]
        shown = [Cell(opened(folder / f"{step:06d}.png"), f"step {step}: {looks[step]:.3f}") for step in steps]
        rows.append(Strip("consistency of the reconstruction", shown))
    return sheet([row for row in rows if row.cells])


def cells(images: Sequence[Image.Image], captions: Sequence[str]) -> list[Cell]:
    """Return images with their captions."""
    return [Cell(image, caption) for image, caption in zip(images, captions, strict=True)]


def pictures(images: np.ndarray) -> list[Image.Image]:
    """Return uint8 arrays [n, H, W, 3] as images."""
    return [Image.fromarray(each) for each in images]


def count(unzip: Unzip) -> int:
    """Return the number of images that the sheet generates."""
    subjects = SHOWN if unzip.task.subjects is None else len(unzip.task.subjects)
    return 2 + 2 * len(places_of(unzip)) + subjects


def places_of(unzip: Unzip) -> list[str]:
    """Return the scenes for the content."""
    usual = (PLACES[4], PLACES[3], PLACES[1]) if unzip.world else SCENES
    return list(unzip.task.scenes if unzip.task.scenes is not None else usual)


def recombinations(unzip: Unzip, words: Words) -> list[Scene]:
    """Return the scenes for both, or new poses on the microworld, whose captions name no place of a drawing."""
    if unzip.world and unzip.task.scenes is None:
        return [words.scene()] * SHOWN
    return [words.scene(place) for place in places_of(unzip)]


def subjects_of(unzip: Unzip, words: Words) -> list[str]:
    """Return the subjects for the style, without the one of the image."""
    if unzip.task.subjects is not None:
        return list(unzip.task.subjects)
    usual = CLASSES if unzip.world else SUBJECTS
    return [each for each in usual if each not in words.subject.split()][:SHOWN]
