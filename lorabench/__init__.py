"""Composing a content LoRA and a style LoRA: a benchmark of the ways to do it, and the ways themselves."""

from typing import TYPE_CHECKING, Any

from lorabench.base import __version__ as __version__

if TYPE_CHECKING:
    from lorabench.tasks.merge_files import merge
    from lorabench.tasks.user_loras import UserLoRA


__all__ = ["UserLoRA", "merge"]
ALIASES = {"OwnLoRA": "UserLoRA"}  # names until version 0.1; removed in 0.3


def __getattr__(name: str) -> Any:
    """Import `lorabench.merge` and `lorabench.UserLoRA` when they are used: they bring the configuration along."""
    if name not in (*__all__, *ALIASES):
        raise AttributeError(f"module 'lorabench' has no attribute {name!r}")
    from lorabench.tasks import merge_files as merging

    return getattr(merging, ALIASES.get(name, name))
