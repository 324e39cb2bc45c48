"""A LoRA as data: two factors for each adapted layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lorabench.lora.compress import CompressionError

NO_STRENGTH = 1e-6  # of all directions together: what is below is rounding


@dataclass(frozen=True)
class Factors:
    """The update `up @ down` of one linear layer.

    down: [rank, in], called A (lora_A) in peft.
    up: [out, rank], called B (lora_B); the file's alpha / rank is folded in.
    Factors of several pairs have a leading axis [pairs].
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[-2]

    def singular_values(self) -> Tensor:
        """Of the update, in float64 on the CPU.

        With up = Q S and down^T = P T the update is Q (S T^T) P^T: those of a core of rank x rank.
        """
        factors = (factor.detach().to("cpu", torch.float64) for factor in (self.up, self.down.mT))
        left, right = (torch.linalg.qr(factor, mode="r").R for factor in factors)
        return torch.linalg.svdvals(left @ right.mT)

    def svd(self) -> Factors:
        """The same update as orthonormal U [out, rank] and diag(s) V^T [rank, in], s falling; no dense update.

        Unlike the trained factors, which any invertible matrix between them changes, these belong to the update.
        """
        q, s = torch.linalg.qr(self.up.float()), torch.linalg.qr(self.down.float().mT)
        u, values, vt = torch.linalg.svd(q.R @ s.R.mT, full_matrices=False)
        return Factors((values[:, None] * vt @ s.Q.mT).to(self.down), (q.Q @ u).to(self.up))

    def proper_svd(self) -> Factors:
        """`svd` without the directions of no strength, which rounding alone would choose."""
        whole = self.svd()
        s = whole.down.norm(dim=1)
        kept = s > NO_STRENGTH * s.sum()
        return Factors(whole.down[kept], whole.up[:, kept])

    @classmethod
    def total(cls, parts: Sequence[Factors]) -> Factors:
        """The sum of updates of one layer: factors of all their ranks, in fp32."""
        down, up = torch.cat([each.down for each in parts]), torch.cat([each.up for each in parts], dim=1)
        return cls(down.float(), up.float())


class LoRA(Mapping[str, Factors]):
    """Factors by layer, a layer being the path of a linear layer inside the UNet.

    text: factors on the text encoders, by "text_encoder.<module path>" and "text_encoder_2.<module path>"; usually
        none. Masks and layer groups are about the UNet, so the mapping does not show them.
    """

    def __init__(self, factors: Mapping[str, Factors], text: Mapping[str, Factors] | None = None):
        self._factors = dict(sorted(factors.items()))
        self.text: dict[str, Factors] = dict(sorted((text or {}).items()))

    def __getitem__(self, layer: str) -> Factors:
        return self._factors[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)

    @property
    def layers(self) -> list[str]:
        return list(self._factors)

    @property
    def rank(self) -> int:
        """The highest rank of any layer of the UNet."""
        return max(factors.rank for factors in self._factors.values())

    def svd(self) -> LoRA:
        """The same updates in the basis of their singular value decompositions; text factors as they are."""
        return LoRA({layer: factors.svd() for layer, factors in self.items()}, self.text)

    def compressed(self, rank: int) -> tuple[LoRA, CompressionError]:
        """The nearest LoRA of at most this rank at every layer, and its relative errors, which print as one line."""
        from lorabench.lora.compress import compress

        return compress(self, rank)

    @staticmethod
    def stack(loras: Sequence[LoRA]) -> LoRA:
        """LoRAs of the same shapes as one with a leading axis [pairs]; without text factors, which no mask touches."""
        return LoRA(
            {
                layer: Factors(
                    torch.stack([each[layer].down for each in loras]), torch.stack([each[layer].up for each in loras])
                )
                for layer in loras[0]
            }
        )

    def parameters(self, *names: str) -> int:
        """How many numbers the factors of these names ("down", "up") hold, those on the text encoders too."""
        factors = [*self.values(), *self.text.values()]
        return sum(getattr(each, name).numel() for each in factors for name in names or ("down", "up"))

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """What LoRAs must share to be stacked."""
        return {layer: (*each.down.shape, *each.up.shape) for layer, each in self.items()}

    def save(
        self,
        path: Path | str,
        metadata: Mapping[str, str] | None = None,
        format: str = "diffusers",
        dtype: str | None = None,
    ) -> None:
        """Write a .safetensors file for diffusers and ComfyUI, or with format="kohya" for A1111 and ComfyUI.

        dtype: "float32", "float16" or "bfloat16"; None leaves the factors as they are. See lorabench.lora.files.write.
        """
        from lorabench.lora.files.write import write

        write(self, path, metadata, format, dtype)

    @classmethod
    def load(cls, path: Path | str) -> LoRA:
        """Read a file of any naming convention, in fp32 with alpha / rank folded into `up`.

        UserError where it is no LoRA of linear layers of the SDXL family. See lorabench.lora.files.read.
        """
        from lorabench.lora.files.read import read

        return read(path)


def in_basis(loras: Sequence[LoRA], basis: str) -> Sequence[LoRA]:
    """The same updates in factors as trained ("raw") or as their singular value decomposition ("svd")."""
    return [lora.svd() for lora in loras] if basis == "svd" else loras
