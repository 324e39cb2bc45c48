"""Joint training: one LoRA by DreamBooth (Ruiz et al., CVPR 2023, arXiv 2208.12242) on the images of both concepts.

    minimise  E_{image of the subject or of the style, eps, t} || e_{W + U D}(x_t, t, prompt) - eps ||^2

Against the direct merge: no merge. One LoRA of the recipe's rank sees the images of subject and style under their own
prompts, as many of each, in as many steps as LoRAs of their own take together. It is trained for a pair and shared with
no other, which merging is there to avoid.
"""

from dataclasses import dataclass
from typing import ClassVar

from lorabench.merging.method import Method, Training


@dataclass(frozen=True, kw_only=True)
class DreamBoothJoint(Method):
    training: ClassVar[Training] = "one"
