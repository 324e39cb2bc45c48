"""Scenes to draw a pair in: DreamBooth's recontextualisation prompts, or others, with the pair's style.

A context is "a {} in the jungle" ({}: the subject) or what follows the subject ("in the jungle"). Of the pair of a dog
and oil painting it makes the prompt "a sks dog in the jungle in szn style" and, for CLIP-T, "a dog in the jungle in oil
painting style".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorabench.config import choose
from lorabench.data.packaged import packaged
from lorabench.data.pairs import Pair, Prompts, Scene, listed
from lorabench.errors import UserError

KINDS = ("none", "object", "live", "auto")


def with_scenes(pair: Pair, prompts: Prompts, lists: Mapping[str, Sequence[str]]) -> Pair:
    """The pair with the scenes that prompts.contexts names.

    lists: the dataset's own contexts "object" and "live"; those of the package stand in for what it lacks.
    """
    chosen = prompts.contexts
    if isinstance(chosen, str):
        choose("prompts.contexts", chosen, KINDS)
        if chosen == "none":
            return pair
        own = pair.contents[0].contexts if len(pair.contents) == 1 else ()
        if chosen == "auto" and own:
            chosen = own
        else:
            live = chosen == "live" or (chosen == "auto" and all(concept.live for concept in pair.contents))
            kind = "live" if live else "object"
            chosen = lists.get(kind) or packaged("contexts")[kind]
    return replace(pair, scenes=tuple(scene(pair, template(context), prompts) for context in dict.fromkeys(chosen)))


def template(context: str) -> str:
    """A context with its place for the subject.

    >>> template("in the snow"), template("a red {}")
    ('a {} in the snow', 'a red {}')
    """
    text = context.strip() if "{}" in context else f"a {{}} {context.strip()}"
    if text.count("{}") != 1 or "{" in text.replace("{}", "") or text == "a {} ":
        raise UserError(f"the context {context!r} is not of the form 'a {{}} in the snow'; {{}} is the subject, once")
    return text


def scene(pair: Pair, context: str, prompts: Prompts) -> Scene:
    """A pair in a context "a {} in the snow"; several subjects are listed where the subject stands."""
    before, _, after = context.partition("{}")
    words = [concept.word for concept in pair.contents]
    named = listed(f"{before}{prompts.content_token} {word}" for word in words)
    plain = listed(f"{before}{word}" for word in words)
    styles = listed(style.word for style in pair.styles)
    return Scene(f"{named}{after} in {prompts.style_token} style", f"{plain}{after} in {styles}")
