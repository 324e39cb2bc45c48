"""Strict loading of safetensors: a file that does not fit is an error of one line, never a half-loaded scorer.

(The official CSD code loads with strict=False, which hides a total mismatch and scores with a random network.)
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
    """Networks made inside have no random start: drawing 428 M numbers takes seconds, and loading replaces them all."""

    FILLS = (aten.normal_.default, aten.uniform_.default, aten.erfinv_.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FILLS:
            return args[0]
        if func is aten.randn.default:
            func = aten.empty.memory_format
        return func(*args, **(kwargs or {}))


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name; UserError when it is missing or is no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"weights not found: {path}; put the scorer's safetensors there")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(unreadable(path, error)) from error


def read_shapes(path: Path) -> dict[str, torch.Tensor]:
    """As read_safetensors, but of the file's header alone: tensors without values, on torch's meta device."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    return f"{path} is no readable safetensors file ({str(error).splitlines()[0]}); fetch it again"


def check_fit(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: Path
) -> dict[str, torch.Tensor]:
    """The tensors in the module's layout; UserError naming the first difference unless all names and shapes are equal.

    config: the scorer's description, for what it is called and which layouts it comes in.
    """
    from lorabench.scoring.layouts import translated

    tensors, expected = translated(tensors, config), module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape)
    if missing or extra or wrong:
        example = (missing or extra or wrong)[0]
        what = "lacks" if missing else "has unknown" if extra else "has another shape of"
        raise UserError(
            f"{source} does not fit the architecture of {config['name']}: {len(missing)} tensors missing, "
            f"{len(extra)} unknown, {len(wrong)} of wrong shape (it {what} '{example}'); use the matching weights"
        )
    return tensors


def load_strict(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: Path
) -> None:
    """Copy `tensors` into `module`, all names and shapes equal, else UserError as of check_fit."""
    tensors, expected = check_fit(module, tensors, config, source), module.state_dict()
    module.load_state_dict({name: value.to(expected[name].dtype) for name, value in tensors.items()}, strict=True)
