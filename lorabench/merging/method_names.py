"""Names of methods in tables: a preset and the components that differ from it."""

from __future__ import annotations

from collections.abc import Mapping

from lorabench.config.choices import choose
from lorabench.merging import presets
from lorabench.merging.presets import GROUPS

CHANGED = "+"  # between a preset and a changed component, "duolora+sampling.composite"


def parse(name: str) -> tuple[str, dict[str, str]]:
    """Return the preset and the options of a name in tables.

    >>> parse("duolora+sampling.composite")[1]["sampling"]
    'composite'
    """
    preset, *changed = name.split(CHANGED)
    options = dict(presets.choices(preset))
    for each in changed:
        group, _, option = each.partition(".")
        choose("component", group, GROUPS)
        presets.check_name(f"method/{group}", option)
        options[group] = option
    return preset, options


def name_of(preset: str, options: Mapping[str, str]) -> str:
    """Return the name in tables: the preset, and the components that differ from it.

    >>> name_of("direct", {"training": "blora", "merge": "direct", "sampling": "plain"})
    'direct+training.blora'
    """
    usual = presets.choices(preset)
    changed = [f"{group}.{options[group]}" for group in GROUPS if options[group] != usual[group]]
    return CHANGED.join([preset, *changed])
