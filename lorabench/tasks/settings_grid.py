"""Combinations of values of settings, written as for Hydra's sweeps: "density=0.2,0.5 weight=1.0,1.4"."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lorabench.base import UserError


def grid(key: str, ranges: str, example: str) -> list[str]:
    """Return all combinations of the values, as Hydra's basic sweeper lists them.

    Args:
        key: Name of the setting with the ranges, for messages.
        ranges: Values of each setting.
        example: A valid value, for messages.

    Raises:
        UserError: If Hydra cannot read them.

    >>> grid("task.ranges.ties", "density=0.2,0.5 weight=1.0,1.4", "density=0.2,0.5")[1]
    'density=0.2 weight=1.4'
    """
    try:
        overrides = OverridesParser.create().parse_overrides(ranges.split())
        [jobs] = BasicSweeper.split_arguments(overrides, None)
    except Exception as error:  # Hydra's errors of syntax have no common class
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}='{ranges}': {reason}; use {key}='{example}'") from None
    return [" ".join(job) for job in jobs]


def settings_of(words: str) -> dict[str, Any]:
    """Return settings as nested values.

    >>> settings_of("fit.lr=0.01 symmetric=true rank=null")
    {'fit': {'lr': 0.01}, 'symmetric': True, 'rank': None}
    """
    found: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words.split()))
    return found
