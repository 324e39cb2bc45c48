"""Bounds and options of settings, declared with the dataclass field and checked in one place.

    density: float = setting(above=0, most=1)
    basis: str = setting(options=("svd", "raw"))

Each item of a list is checked. None is not checked, because the type of a field shows whether None is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from lorabench.base import UserError
from lorabench.config.choices import choose

LIMITS = "limits"  # key of a field's metadata


@dataclass(frozen=True)
class Limits:
    """Condition on a setting.

    Args:
        least: Minimum.
        above: Value that must be exceeded.
        most: Maximum.
        options: Allowed strings.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    options: tuple[str, ...] = ()

    def check(self, key: str, value: Any) -> None:
        """Check one value.

        Raises:
            UserError: If the value of `key` is not allowed.
        """
        if self.options:
            choose(key, str(value), self.options)
        elif isinstance(value, int | float) and not isinstance(value, bool) and not self.holds(value):
            raise UserError(f"{key}={value} must be {self}; use {key}={self.example:g}")

    def holds(self, value: float) -> bool:
        """Return whether a number meets the condition."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )

    @property
    def example(self) -> float:
        """Return an allowed value."""
        if self.most is not None:
            return self.most
        return self.least if self.least is not None else math.floor(self.above or 0) + 1

    def __str__(self) -> str:
        low = f"at least {self.least:g}" if self.least is not None else ""
        low = f"greater than {self.above:g}" if self.above is not None else low
        return " and ".join(filter(None, [low, f"at most {self.most:g}" if self.most is not None else ""]))


def setting(
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    options: Sequence[str] = (),
) -> Any:
    """Return a dataclass field with a condition on its value. See `Limits` for the arguments."""
    metadata = {LIMITS: Limits(least, above, most, tuple(options))}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def check_settings(key: str, settings: Any) -> None:
    """Check every field of a dataclass and of nested dataclasses.

    Args:
        key: Path of the dataclass in the configuration, such as "method".
        settings: An instance, or a container with its values and its type in `_metadata`.

    Raises:
        UserError: If a value is not allowed.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        path = f"{key}.{each.name}" if key else each.name
        if is_dataclass(value):
            check_settings(path, value)
        elif limits := each.metadata.get(LIMITS):
            for item in items(value):
                limits.check(path, item)


def items(value: Any) -> Iterator[Any]:
    """Yield a value, or the items of a list; nothing for None."""
    if isinstance(value, list | tuple):
        yield from value
    elif value is not None:
        yield value
