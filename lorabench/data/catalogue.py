"""From the config's dataset to its pairs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from lorabench.config import DreamBoothStyleDropSpec, MicroworldSpec
from lorabench.data.pairs import JOIN, Concept, Pair, Prompts, all_pairs

Groups = list[tuple[Concept, ...]]


def load_pairs(spec: MicroworldSpec | DreamBoothStyleDropSpec, prompts: Prompts) -> list[Pair]:
    """All pairs of the subjects and styles that the config names; "a+b" names a group that is drawn together.

    Every file is decoded once, so that a broken one is found before any training. Raises UserError.
    """
    if isinstance(spec, MicroworldSpec):
        from lorabench.data import microworld_pairs as world

        subjects = groups(spec, "content", lambda n: world.subject(n, spec.content_images, spec.references, prompts))
        styles = groups(spec, "style", lambda n: world.style(n, spec.style_images, spec.references, prompts))
        return all_pairs(subjects, styles, prompts)

    from lorabench.data import dreambooth, styledrop

    root = Path(spec.root)
    subjects = groups(spec, "content", lambda n: dreambooth.subject(root / "dreambooth", n, prompts))
    styles = groups(spec, "style", lambda n: styledrop.style(root / "styledrop", n, prompts))
    for group in [*subjects, *styles]:
        for concept in group:
            for image in concept.images:
                image.load()
    return all_pairs(subjects, styles, prompts)


def group_names(spec: MicroworldSpec | DreamBoothStyleDropSpec, role: str) -> list[list[str]]:
    """The names of each group; `contents` is one group of subjects and replaces `subjects`."""
    if role == "content" and spec.contents is not None:
        return [list(spec.contents)]
    return [name.split(JOIN) for name in (spec.subjects if role == "content" else spec.styles)]


def groups(spec: MicroworldSpec | DreamBoothStyleDropSpec, role: str, load: Callable[[str], Concept]) -> Groups:
    """Each group with its concepts; a concept that stands in several is loaded once."""
    load = cache(load)
    return [tuple(load(name) for name in names) for names in group_names(spec, role)]


def world_version(spec: MicroworldSpec | DreamBoothStyleDropSpec) -> str:
    """The microworld's version, kept in every row of scores; empty for photographs."""
    if not isinstance(spec, MicroworldSpec):
        return ""
    from lorabench.data import microworld

    return microworld.VERSION
