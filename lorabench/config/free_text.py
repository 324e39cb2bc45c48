"""Values on the command line that are the user's text (paths and prompts), which Hydra must not interpret.

In Hydra's grammar `[ ] { } ( ) = , ' "` and words such as `500` and `true` have a meaning. File names and prompts may
have them, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

FREE = re.compile(
    r"(content|style)\.(lora|prompt|images|embedding|trigger|blocks)|blocks|prompt|(generate\.)?negative|image|output"
    r"|store|name|folder|task\.origin|answers|study|prompts\.(content|style)_token|logger\.project"
    r"|model\.(path|config|vae)|scorers\.(path|weights\.\w+)|dataset\.(\w*root|manifest|path|folder)"
)
LISTS = re.compile(r"dataset\.(subjects|styles|contents|pairs)|prompts\.contexts|runs")  # lists of text
OVERRIDE = re.compile(r"(?P<key>\+{0,2}(?P<name>[\w.]+))=(?P<value>.*)", re.DOTALL)
MULTIRUN = ("-m", "--multirun")
QUOTES = "'\""


def as_typed(words: Iterable[str]) -> list[str]:
    """Return the words of a command line, with free text quoted if Hydra would interpret it.

    `null`, lists such as `content=[a.safetensors,b.safetensors]` and, with -m, sweeps keep their meaning.

    >>> as_typed(["content.lora=My LoRA (1).safetensors", "method=direct", "content.lora=500"])
    ["content.lora='My LoRA (1).safetensors'", 'method=direct', "content.lora='500'"]
    >>> as_typed(["dataset.subjects=[café,tea pot (1)]"])
    ["dataset.subjects=['café','tea pot (1)']"]
    """
    words = list(words)
    sweeps = any(word in MULTIRUN for word in words)
    return [_quoted(word, sweeps) for word in words]


def _quoted(word: str, sweeps: bool) -> str:
    match = OVERRIDE.fullmatch(word)
    if match is not None and LISTS.fullmatch(match["name"]):
        return word if is_readable(word) else quoted(word)
    if match is None or not FREE.fullmatch(match["name"]):
        return word
    value = match["value"]
    if value in ("", "null") or is_quoted(value):
        return word
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):
        return f"{match['key']}={quote(value)}"
    if override.is_sweep_override():
        return word if sweeps else f"{match['key']}={quote(value)}"
    read = override.value()
    if isinstance(read, list | dict) or read == value:
        return word
    return f"{match['key']}={quote(value)}"


def is_readable(word: str) -> bool:
    """Return whether Hydra can parse an override."""
    try:
        OverridesParser.create().parse_override(word)
        return True
    except (HydraException, ValueError):
        return False


def quoted(word: str) -> str:
    """Return `key=value` with quotes around the value, or around each element of a list.

    >>> quoted("a=b (1)"), quoted("a=[b#,'c d']")
    ("a='b (1)'", "a=['b#','c d']")
    """
    key, _, value = word.partition("=")
    if not (value.startswith("[") and value.endswith("]")):
        return f"{key}={quote(value)}"
    parts = [part.strip() for part in value[1:-1].split(",")]
    return f"{key}=[{','.join(part if is_quoted(part) else quote(part) for part in parts)}]"


def is_quoted(value: str) -> bool:
    """Return whether a value is in quotes."""
    return len(value) > 1 and value[0] in QUOTES and value[-1] == value[0]


def quote(value: str) -> str:
    """Return a text as a quoted string of Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", lambda match: f"{match[1] * 2}\\'", value)
    tail = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * tail}'"
