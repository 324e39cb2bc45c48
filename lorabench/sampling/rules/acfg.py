"""Asymmetric classifier-free guidance of CRAFT-LoRA (arXiv 2602.18936): only conditional predictions use adapters.

    eps = e_0(x, "") + g (e_i(x, p) - e_0(x, ""))       (g = 1 + omega: the guidance of all methods)
    e_0: base weights;  e_i: with adapter k at scale alpha_k(i) at step i = 0, ..., n - 1

    schedule   content alpha_c                         style alpha_s
    windows    1 if start_c <= i / n < end_c, else 0   the same with the window of the style
    cosine     (1 - cos(pi u)) / 2,  u = 1 - i / n     1 - alpha_c
    constant   1                                       1

Both predictions are rows of one forward. On a rank-limited backbone (`method/training=craft`) the base weights are
those of the backbone. `symmetric` keeps the adapters in the unconditional prediction too: classifier-free guidance.

The windows are steps 1 to 35 and 15 to 50 of 50 in notes on the camera-ready version; the cosine is in the appendix,
whose formula is inferred from its sentences ("emphasize content early and refine style later"). The released script
runs two separate trajectories, combines their final latents, and has no schedule; it is not followed. Adapters on text
encoders apply to all prompts, because a prompt is encoded once.

A merge that makes one new update, such as TIES, has no separate scales: it is used whole, with `schedule=constant`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.base import UserError
from lorabench.config.settings import setting
from lorabench.data.concepts import Role
from lorabench.sampling.rule import Branch, Context, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA

SCHEDULES = ("windows", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class ACFG(Sampling):
    """Guidance away from the base weights.

    Args:
        schedule: "windows", "cosine" or "constant".
        content_window: Start and end of the content's window as shares of the steps.
        style_window: Start and end of the style's window.
        symmetric: Use the adapters in the unconditional prediction too.

    Raises:
        UserError: If a window is not two shares in order.
    """

    schedule: str = setting(options=SCHEDULES)
    content_window: list[float] = setting(least=0, most=1)
    style_window: list[float] = setting(least=0, most=1)
    symmetric: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for role, window in self.windows.items():
            if len(window) != 2 or window[0] >= window[1]:
                raise UserError(
                    f"method.{role}_window={list(window)} must be a start and a later end; "
                    f"use method.{role}_window=[0,1]"
                )

    @property
    def windows(self) -> dict[Role, list[float]]:
        return {"content": self.content_window, "style": self.style_window}

    @property
    def takes_whole(self) -> bool:
        return self.schedule == "constant" and self.routing == "none"

    def branches(self, context: Context) -> list[Branch]:
        count, guidance = len(context.roles), context.guidance
        unconditional = (float(self.symmetric),) * count
        return [Branch(1 - guidance, unconditional, None), Branch(guidance, (1.0,) * count, "prompt")]

    def scales(self, parts: Sequence[LoRA], context: Context) -> Tensor:
        import torch

        steps = [[self.alpha(role, i / context.steps) for role in context.roles] for i in range(context.steps)]
        return torch.tensor(steps, dtype=torch.float64)[:, None].expand(-1, len(context.layers), -1)

    def alpha(self, role: Role, progress: float) -> float:
        """Return the scale of the adapters of a role at a share of the steps."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "windows":
            start, end = self.windows[role]
            return float(start <= progress < end)
        content = (1 - math.cos(math.pi * (1 - progress))) / 2
        return content if role == "content" else 1 - content
