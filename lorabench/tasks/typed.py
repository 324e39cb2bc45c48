"""Mistakes on the command line for which the user's own words make a clearer message than Hydra's."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.base import CONF
from lorabench.config.choices import unknown

OPTIONAL = ("experiments", "ablation")  # groups that may be null
SWEEPS = ("-m", "--multirun")
AMBIGUOUS = "Ambiguous value for argument '"  # a message of Hydra


def mistake(words: Sequence[str]) -> str | None:
    """Return the message for a group without a choice (`lora=null`) or with several choices; None if there is none."""
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not (CONF / key).is_dir():
            continue
        options = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
        if value.strip() in ("", "null") and key not in OPTIONAL:
            return unknown(key, value, options)
        if "," in value and not set(words) & set(SWEEPS) and all(name in options for name in value.split(",")):
            return f"{word} has several choices, one run each; use -m {word}"
    return None


def ambiguous(message: str) -> str | None:
    """Return the message for a value with commas, given Hydra's message; None if that is about something else."""
    if not message.startswith(AMBIGUOUS):
        return None
    word = message.removeprefix(AMBIGUOUS).partition("'")[0]
    key, _, value = word.partition("=")
    return f"{word} has several values; use {key}=[{value}] for a list, or -m {word} for one run each"
