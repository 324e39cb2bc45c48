"""From the config's dataset to its pairs."""

from pathlib import Path

from lorabench.config import DreamBoothStyleDropSpec, MicroworldSpec
from lorabench.data.pairs import Pair, Prompts, all_pairs


def load_pairs(spec: MicroworldSpec | DreamBoothStyleDropSpec, prompts: Prompts) -> list[Pair]:
    """All pairs of the subjects and styles that the config names.

    Every file is decoded once, so that a broken one is found before any training. Raises UserError.
    """
    if isinstance(spec, MicroworldSpec):
        from lorabench.data import microworld_pairs as world

        subjects = [world.subject(name, spec.content_images, spec.references, prompts) for name in spec.subjects]
        styles = [world.style(name, spec.style_images, spec.references, prompts) for name in spec.styles]
        return all_pairs(subjects, styles, prompts)

    from lorabench.data import dreambooth, styledrop

    root = Path(spec.root)
    subjects = [dreambooth.subject(root / "dreambooth", name, prompts) for name in spec.subjects]
    styles = [styledrop.style(root / "styledrop", name, prompts) for name in spec.styles]
    for concept in [*subjects, *styles]:
        for image in concept.images:
            image.load()
    return all_pairs(subjects, styles, prompts)


def world_version(spec: MicroworldSpec | DreamBoothStyleDropSpec) -> str:
    """The microworld's version, kept in every row of scores; empty for photographs."""
    if not isinstance(spec, MicroworldSpec):
        return ""
    from lorabench.data import microworld

    return microworld.VERSION
