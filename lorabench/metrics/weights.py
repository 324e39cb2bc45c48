"""Strict loading of safetensors: a file that does not fit is an error of one line, never a half-loaded scorer.

(The official CSD code loads with strict=False, which hides a total mismatch and scores with a random network.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name; UserError when it is missing or is no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"weights not found: {path}; put the scorer's safetensors there")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no readable safetensors file ({str(error).splitlines()[0]}); fetch it again"
        ) from error


def load_strict(module: nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Copy `tensors` into `module`, all names and shapes equal, else UserError naming the first difference."""
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape)
    if missing or extra or wrong:
        example = (missing or extra or wrong)[0]
        what = "lacks" if missing else "has unknown" if extra else "has another shape of"
        raise UserError(
            f"{source} does not fit the architecture in its config.json: {len(missing)} tensors missing, "
            f"{len(extra)} unknown, {len(wrong)} of wrong shape (it {what} '{example}'); use the matching weights"
        )
    module.load_state_dict({name: value.to(expected[name].dtype) for name, value in tensors.items()}, strict=True)
