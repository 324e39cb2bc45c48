"""A LoRA as data: two factors for each adapted layer, in and out of diffusers' file format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorabench.errors import UserError

METADATA_KEY = "lora_adapter_metadata"  # where diffusers' save_lora_weights keeps the peft config of a file
KEY = re.compile(r"unet\.(?P<site>.+)\.lora_(?P<factor>[AB])\.weight")


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


class LoRA(Mapping[str, Factors]):
    """Factors by site, a site being the path of a linear layer inside the UNet."""

    def __init__(self, factors: Mapping[str, Factors]):
        self._factors = dict(sorted(factors.items()))

    def __getitem__(self, site: str) -> Factors:
        return self._factors[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)

    @property
    def sites(self) -> list[str]:
        return list(self._factors)

    @property
    def rank(self) -> int:
        """The highest rank of any site."""
        return max(factors.rank for factors in self._factors.values())

    def svd(self) -> LoRA:
        """The same updates in the basis of their singular value decompositions."""
        return LoRA({site: factors.svd() for site, factors in self.items()})

    @staticmethod
    def stack(loras: Sequence[LoRA]) -> LoRA:
        """LoRAs of the same shapes as one with a leading axis [pairs]."""
        return LoRA(
            {
                site: Factors(
                    torch.stack([each[site].down for each in loras]), torch.stack([each[site].up for each in loras])
                )
                for site in loras[0]
            }
        )

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """What LoRAs must share to be stacked."""
        return {site: (*each.down.shape, *each.up.shape) for site, each in self.items()}

    def save(self, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
        """Write the safetensors file that `pipe.load_lora_weights` reads.

        No alpha is written, which diffusers and peft read as alpha = rank: the update is `up @ down` as it stands.
        `metadata` are strings about the file's origin; readers ignore them.
        """
        tensors = {}
        for site, factors in self.items():
            tensors[f"unet.{site}.lora_A.weight"] = factors.down.detach().cpu().contiguous()
            tensors[f"unet.{site}.lora_B.weight"] = factors.up.detach().cpu().contiguous()
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})

    @classmethod
    def load(cls, path: Path | str) -> LoRA:
        """Read a file in diffusers' format; UserError where it is another one."""
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
                config = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read as a LoRA in safetensors format: {error}") from None
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            match = KEY.fullmatch(key)
            if match is None:
                raise UserError(
                    f"{path} has the key {key!r}; give a LoRA of an SDXL UNet's linear layers in diffusers' format "
                    "(keys unet.<layer>.lora_A.weight and lora_B.weight)"
                )
            found.setdefault(match["site"], {})[match["factor"]] = tensor
        incomplete = [site for site, pair in found.items() if len(pair) < 2]
        if incomplete or not found:
            missing = f"one of the two factors of {incomplete[0]}" if incomplete else "every factor"
            raise UserError(f"{path} lacks {missing}; write it again with pipe.save_lora_weights")
        return cls({site: _fold(site, pair["A"], pair["B"], config) for site, pair in found.items()})


def in_basis(loras: Sequence[LoRA], basis: str) -> Sequence[LoRA]:
    """The same updates in factors as trained ("raw") or as their singular value decomposition ("svd")."""
    return [lora.svd() for lora in loras] if basis == "svd" else loras


def _fold(site: str, down: Tensor, up: Tensor, config: dict) -> Factors:
    """Fold the alpha / rank of peft's config (keys prefixed with "unet.") into `up`."""
    alpha = config.get("unet.lora_alpha", down.shape[0])
    for pattern, value in config.get("unet.alpha_pattern", {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", site):  # peft's own reading of a pattern
            alpha = value
            break
    rank = down.shape[0]
    return Factors(down, up * (alpha / (rank**0.5 if config.get("unet.use_rslora") else rank)))
