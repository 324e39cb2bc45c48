"""Casting factors for a file, without losing small or large numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.factors import Factors

DTYPES = ("float32", "float16", "bfloat16")
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133}  # positive number
ROUNDING = {"float16": 2.0**-12, "bfloat16": 2.0**-9}  # relative, of a number that is neither small nor large
MOST = 0.01  # share of a factor's norm that a cast may lose


@dataclass(frozen=True)
class Precision:
    """A cast to `dtype`; None keeps numbers as they are."""

    dtype: str | None

    def factors(self, layer: str, factors: Factors) -> tuple[Tensor, Tensor]:
        """Return down and up in the precision of the file.

        If alpha is much smaller than the rank, `up` is too small for half precision. Then `up` is multiplied and
        `down` divided by a power of two, which changes neither a digit nor the update.

        Raises:
            UserError: If numbers are still too large or too small.
        """
        down, up = factors.down.detach(), factors.up.detach()
        if self.dtype is None:
            return plain(down), plain(up)
        down, up = down.float(), up.float()
        if self.dtype == "float32":
            return plain(down), plain(up)
        if not (self.holds(down) and self.holds(up)):
            even = balanced(Factors(down, up))
            down, up = even.down, even.up
        return self.cast(f"{layer} (down)", down), self.cast(f"{layer} (up)", up)

    def vectors(self, key: str, vectors: Tensor) -> Tensor:
        """Return token embeddings in the precision of the file."""
        return plain(vectors) if self.dtype is None else self.cast(key, vectors.detach().float())

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a cast loses no more than rounding: nothing overflows, and few numbers are tiny."""
        assert self.dtype is not None
        largest = torch.finfo(getattr(torch, self.dtype)).max
        lost = SMALLEST[self.dtype] / 2 * tensor.numel() ** 0.5  # if every number loses half of the smallest step
        norm = float(tensor.norm())  # no number is larger
        return (norm <= largest or bool(tensor.abs().max() <= largest)) and lost <= ROUNDING[self.dtype] * norm

    def cast(self, name: str, tensor: Tensor) -> Tensor:
        """Cast a tensor to the precision of the file.

        Raises:
            UserError: If a number is too large, or the cast loses more than MOST of the norm.
        """
        assert self.dtype is not None
        if self.dtype == "float32":
            return plain(tensor)
        cast = tensor.cpu().to(getattr(torch, self.dtype)).contiguous()
        if self.holds(tensor):
            return cast
        advice = "use task.dtype=bfloat16 (dtype='bfloat16' in Python)"
        if not torch.isfinite(cast).all():
            raise UserError(f"{name} reaches {tensor.abs().max():.3g}, too large for {self.dtype}; {advice}")
        lost = float((cast.float() - tensor).norm() / tensor.norm().clamp(min=torch.finfo().tiny))
        if lost > MOST:
            raise UserError(f"{name} is too small for {self.dtype}, which loses {lost:.0%} of it; {advice}")
        return cast


def plain(tensor: Tensor) -> Tensor:
    """Copy a tensor to memory of its own; safetensors refuses tensors that share memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def balanced(factors: Factors) -> Factors:
    """Return the same update with factors of similar size, which differ by a power of two from the given ones."""
    exponent = float(torch.log2(rms(factors.down) / rms(factors.up)) / 2)
    if not isfinite(exponent):  # a factor is zero or not finite
        return factors
    power = 2.0 ** round(exponent)
    return Factors(factors.down / power, factors.up * power, factors.scale)


def rms(tensor: Tensor) -> Tensor:
    """Return the root mean square of a tensor in double precision."""
    return tensor.double().square().mean().sqrt()
