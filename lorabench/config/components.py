"""Components of methods. A component is found because its module is in the folder of its kind.

A component is a frozen dataclass whose fields are its settings. Its name is the name of its module.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any


@cache
def components(package: str, base: type) -> dict[str, type]:
    """Return the components of a package by name.

    Args:
        package: Name of the package.
        base: Class that components derive from. Each module defines one subclass that is not abstract.
    """
    found = {}
    for name in submodules(importlib.import_module(package)):
        module = importlib.import_module(f"{package}.{name}")
        [found[name]] = [
            each
            for each in vars(module).values()
            if isinstance(each, type)
            and issubclass(each, base)
            and each.__module__ == module.__name__
            and not inspect.isabstract(each)
        ]
    return found


def submodules(package: ModuleType) -> list[str]:
    """Return the names of the modules in a package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def component_name(component: Any) -> str:
    """Return the name of a component, given an instance or its class."""
    kind = component if isinstance(component, type) else type(component)
    return kind.__module__.rpartition(".")[2]


def overrides(component: Any, base: type, *hooks: str) -> bool:
    """Return whether the component replaces one of these methods of a base class."""
    return any(getattr(type(component), hook) is not getattr(base, hook) for hook in hooks)


def values_of(component: Any) -> dict[str, Any]:
    """Return the settings of a component by name, like `dataclasses.asdict` without copies of nested values."""
    return {each.name: getattr(component, each.name) for each in fields(component)}
