"""Images behind CRAFT-LoRA's backbone: contrastive pairs of the microworld, or references of contents and styles.

The result is one concept: `images` are about contents, `styled` are about styles. Captions are in plain words, without
identifiers, because the backbone belongs to no concept of the benchmark.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from lorabench.base import UserError
from lorabench.data.concepts import Concept, Reference
from lorabench.data.scenes import Prompts


@cache
def contrastive(contents: int, styles: int, truth: bool, manifest: str | None) -> Concept:
    """Return the images.

    Args:
        contents: Number of contents.
        styles: Number of styles.
        truth: Return the true pairs of the microworld, one image of each kind per content and style.
        manifest: Manifest of the references; None takes those of the microworld.

    Raises:
        UserError: If there are fewer contents or styles.
    """
    from lorabench.data import microworld_contrast as world

    if truth:
        return world.true_pairs(contents, styles)
    return world.references(contents, styles) if manifest is None else given(Path(manifest), contents, styles)


def given(path: Path, contents: int, styles: int) -> Concept:
    """Return the first image of each subject and style of a manifest (see dataset=folder), in the order of the file."""
    from lorabench.data import folder
    from lorabench.data.manifest import read

    manifest, prompts = read(path.expanduser()), Prompts()
    for key, count, known in (("contents", contents, manifest.subjects), ("styles", styles, manifest.styles)):
        if count > len(known):
            raise UserError(
                f"method.backbone.{key}={count} must be at most {len(known)}, the number in {path}; use "
                f"method.backbone.{key}={len(known)}"
            )

    def plain(image: Reference, look: str = "") -> Reference:
        return replace(image, prompt=f"a {image.word}{look}")

    subjects = [folder.subject(manifest, name, prompts) for name in list(manifest.subjects)[:contents]]
    looks = [folder.style(manifest, name, prompts) for name in list(manifest.styles)[:styles]]
    return Concept(
        "contrastive references", "content", "", tuple(plain(each.images[0]) for each in subjects), (),
        styled=tuple(plain(each.images[0], f" in {each.word}") for each in looks),
    )  # fmt: skip
