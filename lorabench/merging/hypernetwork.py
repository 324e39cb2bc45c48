"""The hypernetwork of LoRA.rar. It predicts a layer's input masks from the columns of its two updates.

    h_j = ReLU( A_w [dW_c[:, j]; dW_s[:, j]] + a_w )       A_w [128, 2 w], one for each width w of a layer's output
    (m_c[j], m_s[j]) = B h_j + b                           B [2, 128], shared by all layers

A_w is multiplied with the factors, (A_w U_k) D_k, so that no dense update is formed. If a role has several LoRAs, dW is
their sum. On SDXL (w = 640 and 1280) the network has 492,034 parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorabench.base import UserError
from lorabench.data.concepts import ROLES, Role
from lorabench.lora.adapter import Factors

HIDDEN = 128
KEY = "lorabench.hypernetwork"  # metadata key of the file's description in JSON


class Hypernetwork(nn.Module):
    """The network.

    Args:
        widths: Numbers of outputs of the layers that the network can mask.
    """

    def __init__(self, widths: Iterable[int]):
        super().__init__()
        self.first = nn.ModuleDict({str(width): nn.Linear(2 * width, HIDDEN) for width in sorted(set(widths))})
        self.last = nn.Linear(HIDDEN, len(ROLES))

    @property
    def widths(self) -> list[int]:
        """Return the numbers of outputs of the layers that the network can mask."""
        return [int(width) for width in self.first]

    def forward(self, updates: Sequence[Factors], roles: Sequence[Role]) -> list[Tensor]:
        """Return the masks [in] of a layer's updates. LoRAs of the same role share their mask."""
        first = self.first[str(len(updates[0].up))]
        assert isinstance(first, nn.Linear)
        halves = dict(zip(ROLES, first.weight.chunk(2, dim=1), strict=True))
        hidden = first.bias[:, None].repeat(1, updates[0].down.shape[1])  # [128, in]
        for update, role in zip(updates, roles, strict=True):
            hidden = hidden + (halves[role] @ update.up.to(hidden)) @ update.down.to(hidden)
        masks = dict(zip(ROLES, self.last(hidden.relu().mT).unbind(-1), strict=True))
        return [masks[role] for role in roles]

    def check(self, layers: Iterable[int], name: str) -> None:
        """Check that the network can mask layers of these widths. `name` is the setting of its weights, for messages.

        Raises:
            UserError: If a width is unknown.
        """
        if lacking := sorted(set(layers) - set(self.widths)):
            raise UserError(
                f"method.weights={name} knows layers of width {listed(self.widths)} and this model has "
                f"{listed(lacking)}; use method.weights=<file> of this model, which task=hypernetwork trains"
            )

    def save(self, path: Path, about: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
        """Write the network to a .safetensors file.

        Args:
            path: The file.
            about: Description of the training, stored as JSON in the file's metadata.
            dtype: Data type of the weights in the file.
        """
        known = json.dumps({"kind": "lora_rar", "widths": self.widths, **about}, sort_keys=True)
        save_file(
            {key: value.detach().to("cpu", dtype) for key, value in self.state_dict().items()}, path, {KEY: known}
        )


def about(path: Path) -> dict[str, Any]:
    """Return the description in a file of weights.

    Raises:
        UserError: If the file is not a hypernetwork in safetensors format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})[KEY])
    except (OSError, SafetensorError):
        raise UserError(
            f"{path} is not a safetensors file, the only supported format; use task=hypernetwork to train a network"
        ) from None
    except (KeyError, ValueError):
        raise UserError(f"{path} has no hypernetwork of LoRA.rar; use task=hypernetwork to train one") from None


def load(path: Path) -> Hypernetwork:
    """Return the hypernetwork of a file in float32 on the CPU. It is read again only if the file changes."""
    stat = path.stat()
    return _load(path, stat.st_mtime_ns, stat.st_size)


@cache
def _load(path: Path, changed: int, size: int) -> Hypernetwork:
    known = about(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no dict)
    try:
        network = Hypernetwork(known["widths"])
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{path} is an incomplete hypernetwork ({reason}); use task=hypernetwork to train one"
        ) from None
    return network.requires_grad_(False).eval()


def listed(widths: Iterable[int]) -> str:
    """Return widths as text."""
    return " and ".join(str(width) for width in widths)
