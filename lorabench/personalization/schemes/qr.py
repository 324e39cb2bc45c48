"""QR-LoRA (Yang et al., ICCV 2025, arXiv 2507.04599): adapters that share one factor, a basis of the layer's weight.

    Q R = U_r S_r V_r^T                    (the r largest singular values of W = U S V^T;  Q [out, r], R [r, in])
    y = (W - Q R) x + Q (R + dR) x         learned: only dR, from zero
    merged:  W + Q (s_c dR_c + s_s dR_s)   (`method/merge=qr_lora`)

`up` = Q is fixed and the same for all concepts, so half of the parameters are learned, and a merge needs only the rank
of one adapter. The released code is for FLUX; its variant that learns only the upper triangle of dR is not implemented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.schemas import LoRASpec
from lorabench.data.pairs import Pair
from lorabench.personalization.schemes.dreambooth import DreamBoothJob
from lorabench.personalization.training import Environment, Output, Training

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class QRJob(DreamBoothJob):
    """DreamBooth that learns only `down`."""

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.dreambooth import personalize

        return {"lora": personalize(model, self.concept, self.recipe, env, in_core=True)}

    def learned(self, lora: LoRA) -> int:
        return lora.parameters("down")


@dataclass(frozen=True, kw_only=True)
class QR(Training):
    """An adapter for each concept in a fixed basis."""

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        return [
            Output(QRJob(concept, recipe, f"{concept.name} in a fixed basis"), "lora", concept.role, concept)
            for concept in pair.concepts
        ]
