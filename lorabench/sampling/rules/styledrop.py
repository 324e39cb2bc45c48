"""StyleDrop (Sohn et al., NeurIPS 2023, arXiv 2306.00983) as it is used with SDXL: style by adapter, content by text.

    eps = e_s(x, "") + g (e_s(x, p) - e_s(x, ""))

e_s is the network with the style adapters only, and p names the subject by its class ("a dog in szn style"). The images
show some dog and not the subject, so they are a lower bound in content for methods that have the style.

Two-term guidance (`two_terms`, `ablation=two_term_guidance`) is that of the publication, with predictions instead of
logits:

    eps = e(x, "") + lambda_b (e(x, p) - e(x, "")) + lambda_a (e_s(x, p) - e(x, p)),   lambda_a = two_terms lambda_b

e is the network without any adapter and lambda_b the guidance of all methods. The text encoders keep the style's part
in every branch, because a prompt is encoded once.

StyleDrop adapts a masked transformer (Muse) and trains a second round on its own best images; neither is implemented.
"""

from dataclasses import dataclass

from lorabench.sampling.rule import Branch, Context, Sampling


@dataclass(frozen=True, kw_only=True)
class StyleDrop(Sampling):
    """Style adapters with a prompt that has no identifier of the content.

    Args:
        two_terms: lambda_a / lambda_b; None is classifier-free guidance with the adapter in both terms.
    """

    two_terms: float | None

    def branches(self, context: Context) -> list[Branch]:
        guidance = context.guidance
        on, off = tuple(float(role == "style") for role in context.roles), (0.0,) * len(context.roles)
        if self.two_terms is None:
            return [Branch(1 - guidance, on, None), Branch(guidance, on, "styled")]
        own = self.two_terms * guidance
        return [Branch(1 - guidance, off, None), Branch(guidance - own, off, "styled"), Branch(own, on, "styled")]
