"""Markers in prompts: which words are about the content and which about the style (CRAFT-LoRA, arXiv 2602.18936).

    a <c>sks dog</c> in the snow in <s>szn style</s>

A sampling rule with `routing` reads them: an adapter whose role is not marked is off. They are removed before a prompt
is encoded. The publication writes one mark after the words ("a sks dog <c> in szn style <s>"), which does not show
where they begin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from lorabench.base import UserError

ROLE_OF = {"c": "content", "s": "style"}
MARK = re.compile(r"<(/?)([cs])>")
EXAMPLE = "use 'a <c>sks dog</c> in <s>szn style</s>'"


class Marked(NamedTuple):
    """A prompt without its markers, and the marked words by role."""

    text: str
    spans: Mapping[str, str]


def parse(prompt: str) -> Marked:
    """Read the markers of a prompt.

    Raises:
        UserError: If a marker is nested in another one, not closed or not opened, empty, or there twice.

    >>> parse("a <c>sks dog</c> in <s>szn style</s>")
    Marked(text='a sks dog in szn style', spans={'content': 'sks dog', 'style': 'szn style'})
    >>> parse("a dog").spans
    {}
    """
    text, spans, opened, start, last = "", dict[str, str](), "", 0, 0
    for mark in MARK.finditer(prompt):
        text, last = text + prompt[last : mark.start()], mark.end()
        closing, name = bool(mark[1]), mark[2]
        if not closing:
            if opened:
                raise wrong(prompt, f"<{name}> is nested in <{opened}>")
            if ROLE_OF[name] in spans:
                raise wrong(prompt, f"<{name}> is there twice")
            opened, start = name, len(text)
            continue
        if name != opened:
            raise wrong(prompt, f"</{name}> closes nothing")
        if not (span := text[start:].strip()):
            raise wrong(prompt, f"<{name}></{name}> is empty")
        spans[ROLE_OF[name]], opened = " ".join(span.split()), ""
    if opened:
        raise wrong(prompt, f"<{opened}> is not closed")
    return Marked(prompt, spans) if not last else Marked(" ".join((text + prompt[last:]).split()), spans)


def wrong(prompt: str, fault: str) -> UserError:
    """Return the error for a prompt with a fault in its markers."""
    return UserError(f"{fault} in the prompt {prompt!r}; {EXAMPLE}")
