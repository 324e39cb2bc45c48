"""A .safetensors file whose tensors are read one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

MAPPED = 2**26  # bytes that are read before the file is mapped again, so that pages read do not stay in memory


class TensorFile:
    """Names, shapes and metadata of a file, and its tensors when they are asked for.

    Raises:
        OSError, SafetensorError: If the file cannot be opened.
    """

    def __init__(self, path: Path):
        self.path, self._read = path, 0
        self._file: Any = safe_open(path, framework="pt")
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.shapes = {key: tuple(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118

    def tensor(self, key: str) -> Tensor:
        """Return a tensor; it is valid as long as it is referenced."""
        if self._read > MAPPED:
            self._file, self._read = safe_open(self.path, framework="pt"), 0
        tensor = self._file.get_tensor(key)
        self._read += tensor.nbytes
        return tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite; one pass without a copy unless their sum overflows."""
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())
