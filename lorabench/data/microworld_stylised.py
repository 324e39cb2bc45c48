"""Images of held-out subjects in held-out styles, from which methods learn both.

The world can also photograph the same subject and show the same style on other subjects. These images are the
references, so that the learned content and the learned style are compared with ground truth.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lorabench.base import UserError, seed_of
from lorabench.config.dataset_schemas import StylisedSpec
from lorabench.data import microworld as mw
from lorabench.data import microworld_pairs as world
from lorabench.data.concepts import Concept
from lorabench.data.matching import select_world
from lorabench.data.microworld.captions import PLACES
from lorabench.data.pairs import Pair, pair
from lorabench.data.scenes import Prompts, Scene


def load(spec: StylisedSpec, prompts: Prompts) -> list[Pair]:
    """Return the pairs of a dataset, each with its own images.

    Raises:
        UserError: If a pair has several subjects or styles, or a name is used twice.
    """
    names = select_world(spec)
    for contents, styles in names:
        if len(contents) > 1 or len(styles) > 1:
            raise UserError(
                f"dataset={spec.name} has one subject in one style per image, not {'+'.join([*contents, *styles])}; "
                "name each subject and each style by itself"
            )
    pairs = [stylised_pair(content, style, spec, prompts) for (content,), (style,) in names]
    for kind, used in (("subject", [each.content_name for each in pairs]), ("style", [e.style_name for e in pairs])):
        if twice := next((name for name in used if used.count(name) > 1), None):
            raise UserError(
                f"dataset={spec.name} must use each name once, but two images show the {kind} {twice}; "
                "use dataset.pairs=matched"
            )
    return pairs


def stylised_pair(content: str, style: str, spec: StylisedSpec, prompts: Prompts) -> Pair:
    """Return a subject and a style that are trained on the same images and scored with others."""
    if spec.style_words:
        prompts = replace(prompts, style_token=mw.style(style).family)
    subject = world.subject(content, spec.images, spec.references, prompts)
    look = shown_on_others(style, subject.word, spec.references, prompts)
    captions = prompts.content(subject.word), prompts.style(subject.word)
    of_content, of_style = (
        tuple(
            world.reference(
                subject.word, caption, partial(world.draw_styled, content, style, index), f"{content} {style}", index
            )
            for index in range(spec.images)
        )
        for caption in captions
    )
    known = pair((replace(subject, images=of_content),), (replace(look, images=of_style),), prompts)
    return replace(
        known,
        content_scenes=tuple(scene(subject.word, look.word, place, prompts) for place in places(content, spec.scenes)),
        style_scenes=tuple(prompts.scene([word], [look.word]) for word in others(style, subject.word, spec.scenes)),
    )


def shown_on_others(name: str, word: str, references: int, prompts: Prompts) -> Concept:
    """Return a style whose references show other classes than `word`."""
    free = [index for index in range(2 * references) if world.thing(name, index) != word]
    every = world.style(name, 0, free[references - 1] + 1, prompts)
    return replace(every, references=tuple(every.references[index] for index in free[:references]))


def scene(word: str, style: str, place: str, prompts: Prompts) -> Scene:
    """Return the scene of a subject in a style at a place."""
    return prompts.scene([word], [style], f"a {{}} {place}")


def places(name: str, count: int) -> list[str]:
    """Return the places in which a subject is to appear by itself."""
    return sorted(PLACES, key=lambda place: seed_of("place", name, place))[:count]


def others(name: str, word: str, count: int) -> list[str]:
    """Return the classes on which a style is to appear by itself."""
    left = [each for each in mw.CLASSES if each != word]
    return sorted(left, key=lambda each: seed_of("other class", name, each))[:count]


def with_own_images(pair: Pair, images: int) -> Pair:
    """Return a pair whose subject and style have images of their own, none of which is a reference.

    Args:
        images: Photographs of the subject, and images of other subjects in the style.
    """
    content, style = pair.concepts
    prompts = Prompts(content.token, style.token)
    references = {each.sha256 for concept in pair.concepts for each in concept.references}
    count = images + len(content.images) + len(content.references)
    photographs = world.subject(content.name, count, 0, prompts).images[-images:]
    shown = world.style(style.name, 2 * (images + len(style.references)), 0, prompts).images
    looks = [each for each in shown if each.sha256 not in references and each.word != content.word][:images]
    return replace(
        pair, contents=(replace(content, images=photographs),), styles=(replace(style, images=tuple(looks)),)
    )
