"""How adapters are applied step by step: the last of the three components of a method.

A rule has two hooks, `branches` and `scales`. One LoRA file can express a method if and only if its rule overrides
neither: then the scales are those of the merge in every step, and guidance is the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lorabench.config.components import overrides
from lorabench.config.settings import check_settings, setting
from lorabench.data.concepts import Role
from lorabench.data.scenes import Wording
from lorabench.models.layer import Layer
from lorabench.sampling.routing import ROUTINGS

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA


@dataclass(frozen=True)
class Branch:
    """One of the predictions that are combined in a sampling step. Branches are rows of one forward.

    Args:
        weight: Weight of the prediction; the weights of all branches sum to 1.
        scales: Scale of each adapter in this branch, multiplied by that of the merge.
        prompt: Variant of the prompt; None is the empty prompt.
        own: Variant that each adapter reads instead in the layers that read the prompt (x_k of the formula); None: all
            adapters read `prompt`.
    """

    weight: float
    scales: tuple[float, ...]
    prompt: Wording | None
    own: tuple[Wording | None, ...] | None = None

    def read_by(self, adapter: int) -> Wording | None:
        """Return the variant that an adapter reads."""
        return self.prompt if self.own is None else self.own[adapter]


@dataclass(frozen=True)
class Context:
    """Facts that a rule can use before sampling starts.

    Args:
        roles: Role of each adapter.
        steps: Number of sampling steps.
        guidance: Scale of classifier-free guidance, 1 without.
        layers: Adapted layers of the denoiser, in the order of the result of `scales`; empty while planning.
    """

    roles: tuple[Role, ...]
    steps: int
    guidance: float
    layers: Mapping[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampling rule. Its fields are its settings.

    Args:
        routing: "none"; "marker": an adapter is off in images whose prompt does not mark its role; "regress" or
            "denoise": its scale is that of an expert encoder. See routing.py.

    Attributes:
        version: Number to raise when the same settings give other images.
    """

    version: ClassVar[int] = 1

    routing: str = setting("none", options=ROUTINGS)

    def __post_init__(self) -> None:
        check_settings("method", self)

    @property
    def is_plain(self) -> bool:
        """Return True if neither hook is overridden and prompts route no adapters."""
        return not overrides(self, Sampling, "branches", "scales") and self.routing == "none"

    @property
    def takes_whole(self) -> bool:
        """Return True if the rule treats all adapters alike, so that it can apply a merge as one adapter."""
        return self.is_plain

    def branches(self, context: Context) -> Sequence[Branch] | None:
        """Return the predictions of a sampling step; None is classifier-free guidance with all adapters."""
        return None

    def scales(self, parts: Sequence[LoRA], context: Context) -> Tensor | None:
        """Return the scale of each adapter by step and layer, multiplied by that of the merge; None is one for all.

        The text encoders keep the scales of the merge, because a prompt is encoded once.

        Args:
            parts: The adapters, before masks.

        Returns:
            [steps, layers, adapters] in float64; a branch multiplies it by its own scales.
        """
        return None


def variants(branches: Sequence[Branch]) -> set[Wording]:
    """Return the prompt variants that branches and their adapters read, without the empty prompt."""
    return {each for branch in branches for each in (branch.prompt, *(branch.own or ())) if each}


def adapters_used(sampling: Sampling, context: Context) -> list[bool]:
    """Return which adapters have a scale other than 0 in some branch."""
    branches = sampling.branches(context)
    return [branches is None or any(branch.scales[k] for branch in branches) for k in range(len(context.roles))]
