"""Strict loading of safetensors: a file that does not fit is an error, never a partly loaded scorer.

CSD's official code loads with strict=False, which hides a complete mismatch and scores with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorabench.base import UserError

aten = torch.ops.aten


class Unfilled(TorchDispatchMode):
    """Context in which networks are built without random initialization, which takes seconds and is overwritten."""

    FILLS = (aten.normal_.default, aten.uniform_.default, aten.erfinv_.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FILLS:
            return args[0]
        if func is aten.randn.default:
            func = aten.empty.memory_format
        return func(*args, **(kwargs or {}))


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: If the file is missing or unreadable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"weights not found: {path}; put the scorer's safetensors there")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(unreadable(path, error)) from error


def read_shapes(path: Path) -> dict[str, torch.Tensor]:
    """Read only the header of a safetensors file -> tensors without values, on torch's meta device."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """Return the message for weights that cannot be read."""
    return f"{path} is not a readable safetensors file ({str(error).splitlines()[0]}); download it again"


def check_fit(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: Path
) -> dict[str, torch.Tensor]:
    """Convert the tensors to the module's layout and compare them with it.

    Args:
        module: Network to load.
        tensors: Tensors of the file.
        config: The scorer's description, for its name and known layouts.
        source: File for the message.

    Raises:
        UserError: If any name or shape differs.
    """
    from lorabench.scoring.layouts import translated

    tensors, expected = translated(tensors, config), module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape)
    if missing or extra or wrong:
        example = (missing or extra or wrong)[0]
        problem = "has no" if missing else "has an unknown" if extra else "has another shape of"
        raise UserError(
            f"{source} does not fit the architecture of {config['name']}: {len(missing)} tensors missing, "
            f"{len(extra)} unknown, {len(wrong)} of wrong shape (it {problem} '{example}'); use the matching weights"
        )
    return tensors


def load_strict(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: Path
) -> None:
    """Copy `tensors` into `module`; raise the UserError of `check_fit` if a name or shape differs.

    Args:
        module: Network.
        tensors: Published weights by name.
        config: Description of the backbone.
        source: File of the weights, for messages.
    """
    tensors, expected = check_fit(module, tensors, config, source), module.state_dict()
    module.load_state_dict({name: value.to(expected[name].dtype) for name, value in tensors.items()}, strict=True)
