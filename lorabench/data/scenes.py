"""Prompts: the identifiers of a run, and the prompts of an image of a pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lorabench.data.concepts import Role
from lorabench.data.markers import parse

NO_SCENE = "a {}"
Wording = Literal["prompt", "subject", "styled", "plain"]


@dataclass(frozen=True)
class Prompts:
    """The prompts of DreamBooth-LoRA with ZipLoRA's identifiers; both identifiers are configurable.

    Args:
        content_token: Identifier of subjects.
        style_token: Identifier of styles.
        contexts: Scenes of the pairs: the name of a list, or the scenes themselves (lorabench/data/contexts.py).
    """

    content_token: str = "sks"
    style_token: str = "szn"
    contexts: str | Sequence[str] = "none"

    def content(self, word: str) -> str:
        """Return the prompt of a subject with this class word."""
        return f"a {self.content_token} {word}"

    def style(self, word: str) -> str:
        """Return the prompt of an image of the style that shows an object."""
        return f"a {word} in {self.style_token} style"

    def scene(self, words: Sequence[str], styles: Sequence[str], context: str = NO_SCENE) -> Scene:
        """Return the scene of subjects with these class words in a context, and of styles with these phrases.

        Each subject has its identifier. All styles share one identifier, which occurs once.

        >>> Prompts().scene(["dog"], ["oil painting style"], "a {} in the snow").prompt
        'a sks dog in the snow in szn style'
        >>> Prompts().scene(["dog", "cat"], ["crayon style"])[1:4]
        ('a dog and a cat in crayon style', 'a sks dog and a sks cat', 'a dog and a cat in szn style')
        """
        marked = parse(context).spans
        context = parse(context).text
        before, _, after = context.partition("{}")
        named = listed(f"{before}{self.content_token} {word}" for word in words) + after
        plain = listed(f"{before}{word}" for word in words) + after
        look = f" in {self.style_token} style"
        text, place = f"{plain} in {listed(styles)}", "" if context == NO_SCENE else context
        subject = listed(f"{self.content_token} {word}" for word in words)
        spans = {"content": subject, "style": look.removeprefix(" in ")} | {
            role: words.replace("{}", subject) for role, words in marked.items()
        }
        return Scene(named + look, text, named, plain + look, plain, place, **spans)


class Scene(NamedTuple):
    """The prompt of an image of a pair, and variants of it. A variant is "" if it is unknown, as for a user's prompt.

    Args:
        prompt: With all identifiers, for every row of a table ("a sks dog in the snow in szn style").
        text: In plain words, for CLIP-T ("a dog in the snow in oil painting style").
        subject: Without the style ("a sks dog in the snow").
        styled: With the class word of the subject instead of its identifier ("a dog in the snow in szn style").
        plain: Without identifiers and style ("a dog in the snow").
        context: The scene for any subject ("a {} in the snow").
        content, style: Words of the prompt about each, which its markers enclose ("sks dog", "szn style"); "" if none.
    """

    prompt: str
    text: str
    subject: str = ""
    styled: str = ""
    plain: str = ""
    context: str = ""
    content: str = ""
    style: str = ""

    def marked(self, role: Role) -> str:
        """Return the words of the prompt about a role; "" if no marker encloses them."""
        return self.content if role == "content" else self.style

    @classmethod
    def of(cls, prompt: str) -> Scene:
        """Return the scene of a prompt of the user, which may have markers.

        Raises:
            UserError: If its markers are not valid.
        """
        text, spans = parse(prompt)
        return cls(text, text, **spans)

    def worded(self, wording: Wording) -> str:
        """Return the prompt in a wording, or `prompt` if the wording is unknown."""
        return getattr(self, wording) or self.prompt


def worded(prompts: Sequence[str | Scene], wording: Wording) -> list[str]:
    """Return scenes in a wording; strings are unchanged."""
    return [each if isinstance(each, str) else each.worded(wording) for each in prompts]


def listed(items: Iterable[str]) -> str:
    """Join items as in a sentence.

    >>> listed(["a mug", "a cat", "a dog"])
    'a mug, a cat and a dog'
    """
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last
