"""Uses of a set of generated images: the subject in the style, or only one of them.

    use             prompt                  adapters   shows
    joint           "a sks dog in szn style"   all     both, as reported in tables
    content         "a sks dog"             content    the subject; its scores of style show leaks from the style images
    style           "a dog in szn style"    style      the style; its scores of content show leaks from the subject
    content_prompt  as content              all        whether the style stays out when the prompt does not name it
    style_prompt    as style                all        whether the subject stays out when the prompt does not name it
    cross           as joint                all        the content of one training with the style of another
    new_...         see extension.py        all        words that the adapters were not trained on

Images of every use are compared with the references of both concepts. `cross` is a joint set of a pair whose adapters
come from different trainings: the pair has these adapters, and the prompt does not change. A merge without separate
adapters, such as TIES, is used as a whole.

Routing by markers turns an adapter off that the prompt does not name, so that with it images of `content_prompt` are
those of `content`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lorabench.data.concepts import ROLES, Role
from lorabench.data.extension import EXTENSIONS, extended
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Scene

Use = Literal[
    "joint", "content", "style", "content_prompt", "style_prompt", "cross", "new_content", "new_style", "new_both"
]
JOINT: Use = "joint"
CROSS: Use = "cross"
NAMED: dict[Use, Role] = {  # the concept in the prompt, for uses that name one only
    "content": "content", "style": "style", "content_prompt": "content", "style_prompt": "style",
}  # fmt: skip
USES: tuple[Use, ...] = (JOINT, *NAMED, CROSS, *EXTENSIONS)


def pair_for(pair: Pair, use: Use) -> Pair:
    """Return the pair with the scenes of a use; its concepts, and so its references, stay."""
    if use in EXTENSIONS:
        return extended(pair, use)
    if use not in NAMED:
        return pair
    role = NAMED[use]
    scenes = (pair.content_scenes if role == "content" else pair.style_scenes) or pair.scenes
    return replace(pair, alone=scene_for(pair.alone, role), scenes=tuple(scene_for(each, role) for each in scenes))


def scene_for(scene: Scene, use: Role) -> Scene:
    """Return a scene in which only the subject, or only the style, is named.

    >>> scene = Scene("a sks dog in szn style", "a dog in ink style", "a sks dog", "a dog in szn style", "a dog")
    >>> scene_for(scene, "content")[:2], scene_for(scene, "style")[:2]
    (('a sks dog', 'a dog'), ('a dog in szn style', 'a dog in ink style'))
    """
    if use == "content":
        return Scene(
            scene.subject, scene.plain, scene.subject, scene.subject, scene.plain, scene.context, content=scene.content
        )  # fmt: skip
    return Scene(scene.styled, scene.text, scene.plain, scene.styled, scene.plain, style=scene.style)


def strength_for(use: Use) -> dict[Role, float] | None:
    """Return the scale of all adapters by role; None: no scaling."""
    return {role: float(role == use) for role in ROLES} if use in ROLES else None


def scaled(strength: dict[Role, float] | None, other: dict[Role, float] | None) -> dict[Role, float] | None:
    """Return the product of two scales by role; None stands for 1."""
    if strength is None or other is None:
        return strength or other
    return {role: strength[role] * other[role] for role in ROLES}
