"""Scenes for the prompts of a pair: DreamBooth's recontextualization prompts, or others, with the pair's style.

A context is "a {} in the jungle", in which {} is the subject, or only "in the jungle". For a dog in oil painting style
it gives the prompt "a sks dog in the jungle in szn style" and, for CLIP-T, "a dog in the jungle in oil painting style".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.data.markers import parse
from lorabench.data.packaged import packaged
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts

KINDS = ("none", "object", "live", "auto")
GROUNDS = "grounds"  # all grounds of the microworld


def with_scenes(pair: Pair, prompts: Prompts, lists: Mapping[str, Sequence[str]]) -> Pair:
    """Return the pair with the scenes of prompts.contexts.

    Args:
        pair: The pair.
        prompts: Settings of prompts.
        lists: The dataset's contexts for "object" and "live" subjects. The package's lists replace missing ones.
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
    words, styles = [content.word for content in pair.contents], [style.word for style in pair.styles]
    scenes = tuple(prompts.scene(words, styles, template(context)) for context in chosen)
    return replace(pair, scenes=tuple({scene.prompt: scene for scene in scenes}.values()))


def with_grounds(pair: Pair, prompts: Prompts, places: Sequence[str]) -> Pair:
    """Return a pair of the microworld with scenes for photographs of the subject by itself.

    The base model knows the grounds from photographs only, so images in a style have none.

    Args:
        pair: The pair.
        prompts: Its `contexts` are "grounds", or some of the places.
        places: All places that the world's photographs have, "on the beach".

    Raises:
        UserError: If `prompts.contexts` names another place.
    """
    chosen = prompts.contexts
    if chosen == "none":
        return pair
    if isinstance(chosen, str):
        if chosen != GROUNDS:
            raise UserError(f"the microworld has {len(places)} grounds of its own; use prompts.contexts={GROUNDS}")
        chosen = places
    known = {template(place): place for place in places}
    if unknown := next((context for context in chosen if template(context) not in known), None):
        raise UserError(f"prompts.contexts: the microworld has no ground {unknown!r}; use {', '.join(places)}")
    words, styles = [content.word for content in pair.contents], [style.word for style in pair.styles]
    scenes = (prompts.scene(words, styles, template(context)) for context in chosen)
    return replace(pair, content_scenes=tuple({scene.subject: scene for scene in scenes}.values()))


def template(context: str) -> str:
    """Return a context with a place {} for the subject.

    >>> template("in the snow"), template("a red {}")
    ('a {} in the snow', 'a red {}')
    """
    parse(context)  # markers that are not valid are found here
    words = " ".join(context.split())
    text = words if "{}" in words else f"a {{}} {words}"
    if text.count("{}") != 1 or "{" in text.replace("{}", "") or text == "a {} ":
        raise UserError(
            f"the context {context!r} is not of the form 'a {{}} in the snow', with one {{}} for the subject"
        )
    return text
