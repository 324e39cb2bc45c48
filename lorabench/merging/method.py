"""A method: a training, a merge and a sampling rule.

Each component is chosen separately, `method=<preset> method/training=... method/merge=... method/sampling=...`, and a
preset chooses all three. A setting has the short form `method.<key>` and belongs to the component that has the key.
B-LoRA's blocks are settings of its training and of its merge, and one value serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorabench.base import UserError
from lorabench.config.components import component_name, values_of
from lorabench.merging import presets
from lorabench.merging.masked import MaskedSum
from lorabench.merging.merge import Merge
from lorabench.merging.method_names import name_of, parse
from lorabench.merging.presets import GROUPS
from lorabench.personalization.schemes.given import Given
from lorabench.personalization.schemes.joint import Joint
from lorabench.personalization.training import Training
from lorabench.sampling.rule import Sampling


@dataclass(frozen=True)
class Method:
    """A training, a merge and a sampling rule.

    Args:
        name: Name in tables: the preset and the components that differ from it, without the ablation.
        options: The chosen option of each group.
        training: The training.
        merge: The merge.
        sampling: The sampling rule.
    """

    name: str
    options: Mapping[str, str]
    training: Training
    merge: Merge
    sampling: Sampling

    @property
    def is_file(self) -> bool:
        """Return whether one LoRA file can express the method, which follows from its sampling rule."""
        return self.sampling.is_plain

    @property
    def settings(self) -> dict[str, Any]:
        """Return all settings by name, as in `cfg.method`."""
        values: dict[str, Any] = {}
        for each in self.components:
            values |= values_of(each)
        return plain(values)

    @property
    def components(self) -> tuple[Training, Merge, Sampling]:
        """Return the three components."""
        return self.training, self.merge, self.sampling

    def with_settings(self, **settings: Any) -> Method:
        """Return the method with other settings of its merge."""
        return replace(self, merge=replace(self.merge, **settings))

    @property
    def indivisible(self) -> str | None:
        """Return why the adapters can be neither masked nor scaled by role; None if they can."""
        if isinstance(self.training, Joint):
            return "trains one LoRA that holds both concepts"
        return None if self.training.has_factors else "learns token embeddings and no LoRA"

    def check(self) -> None:
        """Check that the components can be combined.

        Raises:
            UserError: With the reason why they cannot.
        """
        rule, merge = self.options["sampling"], self.options["merge"]
        if not self.sampling.takes_whole and not self.merge.keeps_parts:
            routing = self.sampling.routing
            chosen, other = f"method/sampling={rule}", "method/sampling=plain"
            if routing != "none":
                chosen, other = f"method.routing={routing}", "method.routing=none"
            raise UserError(
                f"{chosen} scales each LoRA separately, but method/merge={merge} computes one update; use {other} or "
                "method/merge=direct"
            )
        training, needed = self.options["training"], self.merge.training
        if needed not in (None, training):
            raise UserError(
                f"method/merge={merge} merges what method/training={needed} learns, not adapters of "
                f"method/training={training}; use method/training={needed} or method/merge=direct"
            )
        if reason := self.indivisible:
            option = self.options["training"]
            if not (isinstance(self.merge, MaskedSum) and self.merge.is_plain):
                raise UserError(
                    f"method/training={option} {reason}, so method/merge={merge} has nothing to merge; "
                    "use method/merge=direct"
                )
            if not self.sampling.takes_whole:
                raise UserError(
                    f"method/training={option} {reason}, so method/sampling={rule} cannot scale content and style "
                    "separately; use method/sampling=plain"
                )
        if isinstance(self.training, Given):
            raise UserError("method/training=given trains nothing; use task=merge content=<file> style=<file>")


def plain(value: Any) -> Any:
    """Return nested settings as JSON values; dataclasses become dicts."""
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def build(options: Mapping[str, str], settings: Mapping[str, Any], name: str) -> Method:
    """Return the method with these options and settings.

    Args:
        options: Option of each group.
        settings: Settings by name.
        name: Name in tables.

    Raises:
        UserError: If a setting belongs to no component or has a wrong type or value, or if components cannot be
        combined.
    """
    classes = classes_of(options)
    unknown = [key for key in settings if key not in presets.settings_of(classes)]
    if unknown:
        chosen = " ".join(f"method/{group}={options[group]}" for group in GROUPS)
        known = ", ".join(sorted(presets.settings_of(classes))) or "none"
        raise UserError(f"method.{unknown[0]} is unknown to {chosen}; its settings are: {known}")
    made: dict[str, Any] = {}
    for group, kind in classes.items():
        own = {each.name: settings[each.name] for each in fields(kind) if each.name in settings}
        try:
            schema = OmegaConf.structured(kind)
            OmegaConf.set_readonly(schema, False)
            made[group] = OmegaConf.to_object(OmegaConf.merge(schema, own))
        except OmegaConfBaseException as error:
            raise UserError(f"method.{error.full_key or ''}: {str(error).splitlines()[0]}") from None
    method = Method(name, dict(options), **made)
    method.check()
    return method


def composed(cfg: DictConfig, choices: Mapping[str, Any]) -> Method:
    """Return the method of a composed configuration.

    Args:
        cfg: `cfg.method`.
        choices: Hydra's choices, with "method" and "method/<group>".
    """
    options = options_of(choices)
    name = named(choices)
    check_ablation(choices["ablation"], name, options)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return build(options, settings, name)


def options_of(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the option of each group for Hydra's choices."""
    return {group: choices[f"method/{group}"] for group in GROUPS}


def named(choices: Mapping[str, Any]) -> str:
    """Return the name in tables for Hydra's choices."""
    return name_of(choices["method"], options_of(choices))


def check_ablation(ablation: str, name: str, options: Mapping[str, str]) -> None:
    """Check that the components have all settings that an ablation changes.

    Raises:
        UserError: If one is missing.
    """
    if not set(presets.ablation_values(ablation)) <= presets.settings_of(classes_of(options)):
        raise presets.misfit(ablation, name)


def classes_of(options: Mapping[str, str]) -> dict[str, type]:
    """Return the class of each component."""
    return {group: presets.component_class(group, options[group]) for group in GROUPS}


def load(name: str, ablation: str = "none", **settings: Any) -> Method:
    """Return a method with the settings of its YAML files.

    Args:
        name: A preset, or one with other components, such as "duolora+sampling.composite".
        ablation: Name of an ablation.
        settings: Values of settings, as in `load("duolora", "no_cycle", prior=0.2)`.

    Raises:
        UserError: If a name is unknown, the ablation does not fit, or the method does not have a setting.
    """
    preset, options = parse(name)
    values: dict[str, Any] = {}
    for group in GROUPS:
        values |= presets.values(group, options[group])
    check_ablation(ablation, name, options)
    merged: Any = OmegaConf.to_container(OmegaConf.merge(values, presets.ablation_values(ablation)))
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if nested else value
    return build(options, merged, name_of(preset, options))


def key_of_component(component: Training | Merge | Sampling) -> dict[str, Any]:
    """Return the properties of a component that determine its results: name, version and settings."""
    return {
        "name": component_name(component),
        "version": getattr(component, "version", 1),
        "settings": plain(values_of(component)),
    }
