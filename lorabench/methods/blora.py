"""B-LoRA (Frenkel et al., ECCV 2024, arXiv 2403.14572): one block of the UNet holds the content, the next the style.

    dW_m = alpha_c dW_c  in W4 (up_blocks.0.attentions.0),   alpha_s dW_s  in W5 (up_blocks.0.attentions.1),   else 0

Each LoRA is trained in both blocks together and in no other, which is what separates content from style; merged is the
W4 of the content's with the W5 of the style's. Against the naive sum: LoRAs of two blocks, and gains by layer.

The released code scales both factors, so that its alpha counts twice (`squared`). It trains on one image under "A [v]"
(`lora=blora dataset.content_images=1 dataset.style_images=1`); captions are those of the other methods here, since the
pairs' prompts are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lorabench.config import LoRASpec
from lorabench.data.pairs import Role
from lorabench.errors import UserError
from lorabench.method import Method, Site
from lorabench.priors import within


@dataclass(frozen=True, kw_only=True)
class BLoRA(Method):
    """content_block, style_block: W4, W5.  content, style: alpha_c, alpha_s.  squared: see the module."""

    content_block: str
    style_block: str
    content: float
    style: float
    squared: bool

    def lora(self, role: Role, spec: LoRASpec) -> LoRASpec:
        return replace(spec, blocks=[self.content_block, self.style_block])

    def gates(self, sites: Mapping[str, Site], seed: int) -> None:
        for key, block in (("content_block", self.content_block), ("style_block", self.style_block)):
            if not any(within(site, block) for site in sites):
                raise UserError(f"method.{key}={block} is no block of this UNet with adapted layers; type another")

    def gain(self, site: Site, progress: float) -> tuple[float, ...]:
        own = {"content": (self.content_block, self.content), "style": (self.style_block, self.style)}
        power = 2 if self.squared else 1
        return tuple(own[role][1] ** power if within(site.name, own[role][0]) else 0.0 for role in site.roles)
