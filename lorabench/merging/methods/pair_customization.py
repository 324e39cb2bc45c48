"""PairCustomization (Jones et al., arXiv 2405.01536): a style learned from one picture before and after styling.

    training:  content and style adapters on orthonormal disjoint rows D_c, D_s (stages/aligned.py)
    sampling:  eps = e(x, "") + w (e(x, p) - e(x, "")) + sum_k w_k (e_{s_k}(x, p + style_k) - e(x, p)),   w_k = share w

with e the UNet without any adapter, p the subject in plain words ("a dog"), p + style the same with the style
identifier, and one term a style of the pair. Against the direct merge: LoRAs of their own, trained for the pair, and
w + 1 - sum_k w_k, w_k as strengths of branches that are rows of one forward; no single file does it.

The publication has w_k = 3 beside w = 5 and, of several styles, 4.5 beside 7.5: a share of 0.6, which is what is set
here, since w is that of all methods. (At w_k = w the branch e(x, p) is gone and classifier-free guidance is left.) Text
encoders keep the style's parts in every branch, as a prompt is encoded once.

The publication takes a style to *other* contents and leaves the content adapter at home, so by default nothing draws
this very subject. `subject` (ablation=keep_subject) leaves it on in every branch, with its identifier in the prompts:
DuoLoRA's comparison (arXiv 2504.13206) scores the subject, and does not say how.

The styled picture of the training is the truth that other methods are asked for (in a pose that is not scored), which
only a world can supply: the row says what style guidance gives where it is known, not how merging compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lorabench.data.pairs import Role
from lorabench.merging.method import Method, Training
from lorabench.models.layer import Layer
from lorabench.sampling.branches import Branch


@dataclass(frozen=True, kw_only=True)
class PairCustomization(Method):
    """share: w_k / w, of each style; w is generate.guidance.  subject: see the module."""

    training: ClassVar[Training] = "aligned"
    exports: ClassVar[bool] = False

    share: float
    subject: bool

    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        return tuple(float(self.subject or role == "style") for role in layer.roles)

    def guidance(self, cfg: float, roles: Sequence[Role]) -> list[Branch]:
        base, each = tuple(float(role == "content") for role in roles), self.share * cfg
        styles = [k for k, role in enumerate(roles) if role == "style"]
        alone = [tuple(1.0 if k == style else scale for k, scale in enumerate(base)) for style in styles]
        return [
            Branch(1 - cfg, base, None),
            Branch(cfg - each * len(styles), base, "subject" if self.subject else "plain"),
            *(Branch(each, scale, "prompt" if self.subject else "styled") for scale in alone),
        ]
