"""Style guidance of PairCustomization (Jones et al., arXiv 2405.01536): a separate term for each style.

    eps = e(x, "") + w (e(x, p) - e(x, "")) + sum_k w_k (e_{s_k}(x, p + style_k) - e(x, p)),   w_k = share w

e is the network without any adapter, p the subject in plain words ("a dog"), and p + style the same with the identifier
of the style. w is the guidance of all methods.

The publication has w_k = 3 with w = 5 and, for several styles, 4.5 with 7.5: a share of 0.6, the default here. (With
w_k = w the branch e(x, p) vanishes and classifier-free guidance is left.)

The publication applies a style to *other* contents without the content adapter, so by default the images do not show
the subject. `subject` (`ablation=keep_subject`) keeps the content adapter in every branch, with its identifier in the
prompts: DuoLoRA's comparison (arXiv 2504.13206) scores the subject and does not report how it is generated.
"""

from dataclasses import dataclass

from lorabench.sampling.rule import Branch, Context, Sampling


@dataclass(frozen=True, kw_only=True)
class StyleGuidance(Sampling):
    """One guidance term per style.

    Args:
        share: w_k / w of each style.
        subject: Keep the content adapter and its identifier in every branch.
    """

    share: float
    subject: bool

    def branches(self, context: Context) -> list[Branch]:
        guidance, each = context.guidance, self.share * context.guidance
        base = tuple(float(self.subject and role == "content") for role in context.roles)
        styles = [k for k, role in enumerate(context.roles) if role == "style"]
        single = [tuple(1.0 if k == style else scale for k, scale in enumerate(base)) for style in styles]
        return [
            Branch(1 - guidance, base, None),
            Branch(guidance - each * len(styles), base, "subject" if self.subject else "plain"),
            *(Branch(each, scales, "prompt" if self.subject else "styled") for scales in single),
        ]
