"""Mistakes on the command line that are clearer as they were typed than as Hydra reports them."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.base import CONF
from lorabench.config.choices import unknown

OPTIONAL = ("experiments", "ablation")  # groups that may be null
SWEEPS = ("-m", "--multirun")
AMBIGUOUS = "Ambiguous value for argument '"  # a message of Hydra


def mistake(words: Sequence[str]) -> str | None:
    """Return the line on a group without a choice (`lora=null`) or with several; None if there is none."""
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or "/" in key or not (CONF / key).is_dir():
            continue
        options = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
        if value.strip() in ("", "null") and key not in OPTIONAL:
            return unknown(key, value, options)
        if "," in value and not set(words) & set(SWEEPS) and all(name in options for name in value.split(",")):
            return f"{word} has several choices, each of which is a run; use -m {word}"
    return None


def ambiguous(message: str) -> str | None:
    """Return the line on a value with commas, from Hydra's message of several lines; None if it is another one."""
    if not message.startswith(AMBIGUOUS):
        return None
    word = message.removeprefix(AMBIGUOUS).partition("'")[0]
    key, _, value = word.partition("=")
    return f"{word} has several values; use {key}=[{value}] for a list, or -m {word} for a run of each"
