"""LoRA.rar: ZipLoRA's masks, predicted by one forward pass of a small network.

    dW_m = dW_c diag(m_c) + dW_s diag(m_s)      in to_q and to_out.0,      dW_c + dW_s in to_k and to_v
    (m_c[j], m_s[j]) = H(dW_c[:, j], dW_s[:, j])

H is one network for all layers and all pairs (lorabench/merging/hypernetwork.py). It is trained once per model, on
LoRAs of other subjects and styles, with ZipLoRA's loss (lorabench/merging/hypernetwork_training.py, task=hypernetwork).

The merge differs from the direct merge by masks i on the query and output projections, D_k' = D_k diag(m_k), so its
rank is r_c + r_s, exactly. Nothing is learned per pair. H takes one content update and one style update. If a role has
several LoRAs, dW_k is their sum, and they share m_k. If a layer has only one role, the columns of the other one are
zero.

This code follows the formulas of the paper and does not use the released code and weights, which are for non-commercial
use. In the released training, the style prompt of an epoch is that of another pair; here each pair has its own.

Source: Shenaj et al., ICCV 2025, arXiv 2412.05148.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.base import ASSETS, UserError
from lorabench.config.choices import unknown
from lorabench.merging.masked import MaskedSum
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors
    from lorabench.lora.layer import Masks

SHIPPED = ASSETS / "lora_rar"  # folder of <name>.safetensors, one per model
MASKED = (".to_q", ".to_out.0")  # layers with masks; the others are summed


@dataclass(frozen=True, kw_only=True)
class LoRARar(MaskedSum):
    """Predicted input masks.

    Args:
        weights: Weights of H: "micro", which is included in the package, or a file of task=hypernetwork.
    """

    weights: str

    def __post_init__(self) -> None:
        super().__post_init__()
        network_file(self.weights)

    def files(self) -> dict[str, Path]:
        """Return the file of the hypernetwork."""
        return {"weights": network_file(self.weights)}

    def trained_on(self) -> frozenset[str]:
        """Return the names of the concepts that the hypernetwork was trained on."""
        from lorabench.merging.hypernetwork import about

        names: Mapping[str, Sequence[str]] = about(network_file(self.weights)).get("trained_on", {})
        return frozenset(name for role in names.values() for name in role)

    def check(self, layers: Mapping[str, Layer]) -> None:
        from lorabench.merging.hypernetwork import load

        widths = (layer.out_features for name, layer in layers.items() if is_masked(name))
        load(network_file(self.weights)).check(widths, self.weights)

    def masks(
        self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None"
    ) -> "tuple[Masks, ...] | None":
        from lorabench.lora.layer import Masks
        from lorabench.merging.hypernetwork import load

        if not is_masked(layer.name):
            return None
        return tuple(Masks(i=mask) for mask in load(network_file(self.weights))(updates, layer.roles))


def is_masked(layer: str) -> bool:
    """Return whether a layer of the denoiser has masks: the query and output projections of attention have."""
    return layer.endswith(MASKED)


def network_file(weights: str) -> Path:
    """Return the file of weights, which is in the package or is a path of the user.

    Raises:
        UserError: If there is no such file.
    """
    path = SHIPPED / f"{weights}.safetensors"
    path = path if path.is_file() else Path(weights).expanduser()
    if not path.is_file():
        shipped = sorted(each.stem for each in SHIPPED.glob("*.safetensors"))
        raise UserError(unknown("method.weights", weights, [*shipped, "a file of task=hypernetwork"]))
    return path
