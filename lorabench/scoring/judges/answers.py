"""Verdicts from the raw texts of a judge. A text without a valid answer in its place is invalid, never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

INVALID = "invalid"
TIE = "tie"
FENCE = re.compile(r"^```\w*\n(.*)\n```$", re.DOTALL)
LABEL = re.compile(r"(?:answer|score)\s*:\s*", re.IGNORECASE)
DECORATION = "*`\"' "  # Markdown and quotes around a token
PAIR_OPTIONS = ("A", "B", "TIE")


def parse(text: str, options: Sequence[str]) -> str | None:
    """Return the answer in a text, or None.

    The whole text or its last line must be a JSON object with the key "answer", or the last line must be the answer
    itself, with or without "Answer:" before it. A sentence that ends with "B" is not an answer.

    >>> parse('{"answer": "A"}', ("A", "B")), parse("A has better colors.\\nAnswer: **B**", ("A", "B"))
    ('A', 'B')
    >>> parse("I prefer image B", ("A", "B")) is None
    True
    """
    text = text.strip()
    text = match[1].strip() if (match := FENCE.match(text)) else text
    last = text.splitlines()[-1].strip() if text else ""
    for candidate in (text, last):
        try:
            found = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(found, dict):
            answer = found.get("answer")
            token = str(answer).upper() if isinstance(answer, str | int) and not isinstance(answer, bool) else ""
            return token if token in options else None
    token = LABEL.sub("", last.strip(DECORATION), count=1).strip(DECORATION).removesuffix(".").strip(DECORATION)
    return token.upper() if token.upper() in options else None


def both_orders(first: str, swapped: str) -> str:
    """Return "a", "b", "tie" or "invalid" from the raw answers on (a, b) and on (b, a).

    Answers that disagree are a tie, so a judge that prefers a position prefers no image.
    """
    one, two = parse(first, PAIR_OPTIONS), parse(swapped, PAIR_OPTIONS)
    if one is None or two is None:
        return INVALID
    return {("A", "B"): "a", ("B", "A"): "b"}.get((one, two), TIE)


def ratings(protocol: str, raw: Sequence[str]) -> list[float | None]:
    """Return a value per vote: 1 or 0 of combination, 0 to 4 of rubric, None if invalid."""
    options = {"YES": 1.0, "NO": 0.0} if protocol == "combination" else {digit: float(digit) for digit in "01234"}
    return [None if (token := parse(text, tuple(options))) is None else options[token] for text in raw]
