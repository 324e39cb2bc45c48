"""Methods that merge a content LoRA and a style LoRA, and a benchmark of them."""

from typing import TYPE_CHECKING, Any

from lorabench.base import __version__ as __version__

if TYPE_CHECKING:
    from lorabench.tasks.apply import apply
    from lorabench.tasks.merge_files import merge
    from lorabench.tasks.user_loras import UserLoRA


__all__ = ["UserLoRA", "apply", "merge"]
ALIASES = {"OwnLoRA": "UserLoRA"}  # old names, to be removed in version 0.3


def __getattr__(name: str) -> Any:
    """Import public names on first use, because they import the configuration."""
    if name not in (*__all__, *ALIASES):
        raise AttributeError(f"module 'lorabench' has no attribute {name!r}")
    from lorabench.tasks import apply as applying
    from lorabench.tasks import merge_files as merging

    return applying.apply if name == "apply" else getattr(merging, ALIASES.get(name, name))
