"""DreamBooth-LoRA on photographs of the subject and on other subjects in the style: an upper bound.

Methods that learn from one stylized image have neither. Only a world that can render both has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import setting
from lorabench.data.catalogue import with_own_images
from lorabench.data.pairs import Pair
from lorabench.personalization.schemes.dreambooth import dreambooth
from lorabench.personalization.training import Images, Output, Training


@dataclass(frozen=True, kw_only=True)
class OwnImages(Training):
    """An adapter for each concept of a stylized image, on images of its own.

    Args:
        own_images: Images per concept.
    """

    images: ClassVar[Images] = "stylised"

    own_images: int = setting(least=1)

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        return [
            dreambooth(concept, recipe, " on own images") for concept in with_own_images(pair, self.own_images).concepts
        ]
