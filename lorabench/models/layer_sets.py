"""Sets of layers by role, {content: [modules], style: [modules]}: presets of conf/, or files.

A module is given by its path, or by the name of a group of a transformer's layers. `python run.py task=layer_probe`
writes such a file. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lorabench.base import CONF, UserError
from lorabench.config.choices import unknown
from lorabench.data.concepts import ROLES, Role

LayerSets = dict[str, list[str]]  # module paths by role


def read_layer_sets(key: str, value: str | Mapping[str, Any], folder: str, others: Sequence[str] = ()) -> LayerSets:
    """Return the sets that a setting names.

    Args:
        key: The setting, for messages.
        value: Name of a preset in conf/<folder>, a yaml file, or the sets themselves.
        folder: Folder of the presets.
        others: Further values that the setting has, for messages.

    Raises:
        UserError: If there is no such preset or file, or it does not have this form.
    """
    found: Any = value
    if isinstance(value, str):
        presets = {path.stem: path for path in (CONF / folder).glob("*.yaml")}
        path = presets.get(value, Path(value))
        if not path.is_file():
            raise UserError(unknown(key, value, [*others, *sorted(presets), "a yaml of task=layer_probe"]))
        try:
            found = OmegaConf.to_container(OmegaConf.load(path))
        except (OSError, YAMLError, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is not valid YAML: {reason}; write it with task=layer_probe") from None
    if not isinstance(found, Mapping) or set(found) != set(ROLES) or not all(map(is_names, found.values())):
        raise UserError(f"{key} needs lists of module paths: {{content: [<module path>], style: [<module path>]}}")
    return {role: list(found[role]) for role in ROLES}


def role_modules(key: str, value: str | Sequence[str], role: Role) -> str | Sequence[str]:
    """Return the modules that a setting of one role names: itself, or those of a preset of conf/layer_sets or a file.

    Args:
        key: The setting, for messages.
        value: A module path, several, the name of a preset, or the path of a yaml file.
        role: The role.

    Raises:
        UserError: If there is no such file, or it does not have this form.
    """
    if isinstance(value, str) and (value.endswith(".yaml") or (CONF / "layer_sets" / f"{value}.yaml").is_file()):
        return read_layer_sets(key, value, "layer_sets")[role]
    return value


def is_names(value: Any) -> bool:
    """Return whether a value is a list of names."""
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
