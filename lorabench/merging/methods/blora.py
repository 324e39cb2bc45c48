"""B-LoRA (Frenkel et al., ECCV 2024, arXiv 2403.14572): one block of the UNet holds the content, the next the style.

    dW_m = alpha_c dW_c  in W4 (`content_block`),   alpha_s dW_s  in W5 (`style_block`),   else 0

Each LoRA is trained in both blocks together and in no other, on one image under "a [v]", the identifier without a word
for what is shown: it is the blocks that separate content from style. Merged is the W4 of the content's with the W5 of
the style's. Against the direct merge: LoRAs of their own, and scales by layer.

The released code scales both factors, so that its alpha counts twice (`squared`). Images are drawn under the prompt of
all methods, which names the class beside the identifier. ablation=all_images trains on the images and captions of the
other methods; lora=blora is the published recipe of steps and rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec
from lorabench.data.pairs import Concept, Role
from lorabench.merging.method import Method
from lorabench.merging.priors import within
from lorabench.models.layer import Layer


@dataclass(frozen=True, kw_only=True)
class BLoRA(Method):
    """content_block, style_block: W4, W5.  content, style: alpha_c, alpha_s.  squared, one_image: see the module."""

    content_block: str
    style_block: str
    content: float
    style: float
    squared: bool
    one_image: bool

    def lora(self, role: Role, spec: LoRASpec) -> LoRASpec:
        return replace(spec, blocks=[self.content_block, self.style_block])

    def trained_on(self, concept: Concept) -> Concept:
        if not self.one_image:
            return concept
        return replace(concept, images=(replace(concept.images[0], prompt=f"a {concept.token}"),))

    def check(self, layers: Mapping[str, Layer]) -> None:
        roles: dict[Role, None] = dict.fromkeys(role for layer in layers.values() for role in layer.roles)
        for role in roles:
            block = self.alphas[role][0]
            if not any(
                layer.ranks[k] for layer in layers.values() if within(layer.name, block) for k in layer.of(role)
            ):
                raise UserError(f"method.{role}_block={block} has no layer that a {role} LoRA adapts; type another")

    @property
    def alphas(self) -> dict[Role, tuple[str, float]]:
        """The block and the strength of each role."""
        return {"content": (self.content_block, self.content), "style": (self.style_block, self.style)}

    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        own, power = self.alphas, 2 if self.squared else 1
        return tuple(own[role][1] ** power if within(layer.name, own[role][0]) else 0.0 for role in layer.roles)
