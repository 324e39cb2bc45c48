"""Held-out subjects and styles of the microworld as concepts, and the oracle's images of a pair.

A subject is photographed in several poses. A style is shown on several subjects that are not in the benchmark. Every
image depends only on names and an index, so a concept is the same in every run.
"""

import hashlib
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.data.concepts import Concept, Reference
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts

SIZE = 64  # pixels


def subject(name: str, images: int, references: int, prompts: Prompts) -> Concept:
    """Return a held-out subject with `images` photographs to train on and `references` others to compare with."""
    factors = mw.subject(name)
    shots = tuple(
        reference(factors.cls, prompts.content(factors.cls), partial(draw_photo, name, index), name, index)
        for index in range(images + references)
    )
    return Concept(name, "content", factors.cls, shots[:images], shots[images:], factors, token=prompts.content_token)


def style(name: str, images: int, references: int, prompts: Prompts) -> Concept:
    """Return a held-out style with `images` images to train on and `references` others to compare with."""
    factors = mw.style(name)
    things = [thing(name, index) for index in range(images + references)]
    shots = tuple(
        reference(cls, prompts.style(cls), partial(draw_style, name, index), name, index)
        for index, cls in enumerate(things)
    )
    phrase = f"{factors.family} style"
    return Concept(name, "style", phrase, shots[:images], shots[images:], factors, token=prompts.style_token)


def aligned(content: Concept, style: Concept, images: int, prompt: str) -> Concept:
    """Return the first photographs of a subject, and the same poses in a style with the pair's prompt as caption."""
    before = content.images[:images]
    after = tuple(
        reference(
            content.word, prompt, partial(draw_styled, content.name, style.name, i), f"{content.name} {style.name}", i
        )
        for i in range(len(before))
    )
    return replace(content, name=f"{content.name} in {style.name}", images=before, styled=after)


def reference(word: str, prompt: str, load: partial[Image.Image], name: str, index: int) -> Reference:
    """Return an image of the world, identified by the world's version, a name and an index.

    Args:
        word: Object in the image.
        prompt: Caption in training.
        load: Function that renders the image.
        name: Name of the subject or style.
        index: Number of the image.
    """
    identity = f"microworld {mw.VERSION} {SIZE} {name} {index}"
    return Reference(word, prompt, hashlib.sha256(identity.encode()).hexdigest(), load)


def draw_photo(name: str, index: int) -> Image.Image:
    """Render photograph `index` of a held-out subject."""
    return render(mw.subject(name), None, seed_of("photo", name, index))


def draw_styled(name: str, look: str, index: int) -> Image.Image:
    """Render photograph `index` of a held-out subject in a held-out style instead."""
    return render(mw.subject(name), mw.style(look), seed_of("photo", name, index))


def draw_style(name: str, index: int) -> Image.Image:
    """Render image `index` of a held-out style, of some subject of the class `thing(name, index)`."""
    individual = mw.sample_subject(np.random.default_rng(seed_of("individual", name, index)), thing(name, index))
    return render(individual, mw.style(name), seed_of("style", name, index))


def thing(name: str, index: int) -> str:
    """Return the class in image `index` of a style; twelve consecutive ones are different."""
    classes = np.random.default_rng(seed_of("classes", name)).permutation(list(mw.CLASSES))
    return str(classes[index % len(classes)])


def oracle(pair: Pair, index: int) -> Image.Image:
    """Render the ground truth of a single pair: this subject in this style, in pose `index`."""
    [content], [style] = pair.contents, pair.styles
    return render(content.factors, style.factors, seed_of("oracle", content.name, style.name, index))


def render(individual: mw.Subject, look: mw.Style | None, seed: int) -> Image.Image:
    """Render a subject in a style (None: as a photograph), in a pose sampled with the seed."""
    pose = mw.sample_pose(np.random.default_rng(seed))
    return Image.fromarray(mw.render(individual, look, pose, SIZE))
