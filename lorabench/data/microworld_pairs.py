"""Held-out subjects and styles of the microworld as concepts, and the oracle's pictures of a pair.

A subject is photographed in several poses; a style is shown on several individuals that are not the benchmark's.
Every drawing follows from its name alone, so a concept is the same whatever else a run holds.
"""

import hashlib
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.data.pairs import Concept, Pair, Prompts, Reference

SIZE = 64  # pixels


def subject(name: str, images: int, references: int, prompts: Prompts) -> Concept:
    """A held-out subject: `images` photographs to train on, `references` others to score with."""
    factors = mw.subject(name)
    shots = tuple(
        reference(factors.cls, prompts.content(factors.cls), partial(draw_photo, name, index), name, index)
        for index in range(images + references)
    )
    return Concept(name, "content", factors.cls, shots[:images], shots[images:], factors, token=prompts.content_token)


def style(name: str, images: int, references: int, prompts: Prompts) -> Concept:
    """A held-out style: `images` pictures to train on, `references` others to score with."""
    factors = mw.style(name)
    things = [thing(name, index) for index in range(images + references)]
    shots = tuple(
        reference(cls, prompts.style(cls), partial(draw_style, name, index), name, index)
        for index, cls in enumerate(things)
    )
    phrase = f"{factors.family} style"
    return Concept(name, "style", phrase, shots[:images], shots[images:], factors, token=prompts.style_token)


def aligned(content: Concept, style: Concept, images: int, prompt: str) -> Concept:
    """The first photographs of a subject, and the same poses drawn in a style, captioned with the pair's prompt."""
    before = content.images[:images]
    after = tuple(
        reference(
            content.word, prompt, partial(draw_styled, content.name, style.name, i), f"{content.name} {style.name}", i
        )
        for i in range(len(before))
    )
    return replace(content, name=f"{content.name} in {style.name}", images=before, styled=after)


def reference(word: str, prompt: str, load: partial[Image.Image], name: str, index: int) -> Reference:
    identity = f"microworld {mw.VERSION} {SIZE} {name} {index}"
    return Reference(word, prompt, hashlib.sha256(identity.encode()).hexdigest(), load)


def draw_photo(name: str, index: int) -> Image.Image:
    """Photograph `index` of a held-out subject."""
    return render(mw.subject(name), None, seed_of("photo", name, index))


def draw_styled(name: str, look: str, index: int) -> Image.Image:
    """Photograph `index` of a held-out subject as a held-out style draws it."""
    return render(mw.subject(name), mw.style(look), seed_of("photo", name, index))


def draw_style(name: str, index: int) -> Image.Image:
    """Picture `index` of a held-out style, of some individual of the class `thing(name, index)`."""
    individual = mw.sample_subject(np.random.default_rng(seed_of("individual", name, index)), thing(name, index))
    return render(individual, mw.style(name), seed_of("style", name, index))


def thing(name: str, index: int) -> str:
    """The class that picture `index` of a style shows; twelve in a row are all different."""
    classes = np.random.default_rng(seed_of("classes", name)).permutation(list(mw.CLASSES))
    return str(classes[index % len(classes)])


def oracle(pair: Pair, index: int) -> Image.Image:
    """The truth of a single pair: this subject in that style, in pose `index`."""
    [content], [style] = pair.contents, pair.styles
    return render(content.factors, style.factors, seed_of("oracle", content.name, style.name, index))


def render(individual: mw.Subject, look: mw.Style | None, seed: int) -> Image.Image:
    pose = mw.sample_pose(np.random.default_rng(seed))
    return Image.fromarray(mw.render(individual, look, pose, SIZE))
