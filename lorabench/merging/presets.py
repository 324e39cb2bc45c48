"""Reading the YAML files of methods without Hydra: presets, options of components, and ablations.

conf/method/<preset>.yaml                    one option of each group
conf/method/{training,merge,sampling}/<option>.yaml
                                             settings of a component. Its class is in the module of the same name, or
                                             in the module of the option in its defaults list
conf/ablation/<ablation>.yaml                settings that an ablation changes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from lorabench.base import CONF, UserError
from lorabench.config.choices import choose
from lorabench.config.components import components
from lorabench.merging.merge import Merge
from lorabench.personalization.training import Training
from lorabench.sampling.rule import Sampling

GROUPS = ("training", "merge", "sampling")
PACKAGES: dict[str, tuple[str, type]] = {
    "training": ("lorabench.personalization.schemes", Training),
    "merge": ("lorabench.merging.methods", Merge),
    "sampling": ("lorabench.sampling.rules", Sampling),
}
SELF = "_self_"


def presets() -> list[str]:
    """Return the names of all presets."""
    return names("method")


def options(group: str) -> list[str]:
    """Return the options of a group of components."""
    return names(f"method/{group}")


def ablations() -> list[str]:
    """Return the names of all ablations, "none" first."""
    return sorted(names("ablation"), key=lambda name: name != "none")


@cache
def names(group: str) -> list[str]:
    """Return the names of the YAML files in a folder of conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def check_name(group: str, name: str) -> None:
    """Check that a YAML file exists.

    Raises:
        UserError: If it does not.
    """
    choose(group, name, names(group))


@cache
def choices(preset: str) -> dict[str, str]:
    """Return the option of each group that a preset chooses."""
    check_name("method", preset)
    chosen: dict[str, str] = {}
    for entry in read("method", preset)["defaults"]:
        chosen |= entry
    return chosen


@cache
def component_class(group: str, option: str) -> type:
    """Return the class of an option."""
    check_name(f"method/{group}", option)
    found = components(*PACKAGES[group])
    return found[option] if option in found else component_class(group, base_option(group, option))


def base_option(group: str, option: str) -> str:
    """Return the option on which another option is based."""
    [base] = [each for each in read(f"method/{group}", option)["defaults"] if each != SELF]
    return base


@cache
def values(group: str, option: str) -> dict[str, Any]:
    """Return the settings of an option, including those of the option on which it is based."""
    own = {key: value for key, value in read(f"method/{group}", option).items() if key != "defaults"}
    if "defaults" not in read(f"method/{group}", option):
        return own
    merged: Any = OmegaConf.to_container(OmegaConf.merge(values(group, base_option(group, option)), own))
    return merged


@cache
def ablation_values(name: str) -> dict[str, Any]:
    """Return the settings that an ablation changes."""
    check_name("ablation", name)
    return read("ablation", name)


@cache
def read(group: str, name: str) -> dict[str, Any]:
    """Return the content of a YAML file in conf/."""
    found: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    return found or {}


def settings_of(classes: Mapping[str, type]) -> set[str]:
    """Return the names of the settings of components."""
    return {each.name for kind in classes.values() for each in fields(kind)}


@cache
def fits(preset: str, ablation: str) -> bool:
    """Return whether the components of a preset have all settings that an ablation changes."""
    return set(ablation_values(ablation)) <= settings_of(
        {group: component_class(group, option) for group, option in choices(preset).items()}
    )


def fitting_presets(ablation: str) -> list[str]:
    """Return the presets to which an ablation can be applied; all presets for an ablation without changes."""
    return [preset for preset in presets() if fits(preset, ablation)]


def misfit(ablation: str, name: str) -> UserError:
    """Return the error for an ablation of another method."""
    fitting = "|".join(fitting_presets(ablation))
    return UserError(f"ablation={ablation} changes settings that {name} does not have; use method=<{fitting}>")
