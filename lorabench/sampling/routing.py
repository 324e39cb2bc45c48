"""Routing: the words of a prompt that are marked decide which adapters an image uses (CRAFT-LoRA, arXiv 2602.18936).

    marker             gamma_k = 1 if the role of adapter k is marked in the prompt, else 0
    regress, denoise   gamma_k of an expert encoder (encoder.py), trained in one of two ways; 0 if not marked

gamma multiplies the scale of the adapter in every layer, step and branch. Rows of one batch have prompts, and so
scales, of their own. Parts for text encoders keep their scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorabench.data.concepts import Role
from lorabench.data.scenes import Scene

if TYPE_CHECKING:
    from torch import Tensor

ROUTINGS = ("none", "marker", "regress", "denoise")
LEARNED = ("regress", "denoise")


def as_scene(prompt: str | Scene) -> Scene:
    """Return a prompt as a scene, without its markers."""
    return prompt if isinstance(prompt, Scene) else Scene.of(prompt)


def marker_scales(scenes: Sequence[Scene], roles: Sequence[Role]) -> Tensor:
    """Return 1 if a prompt marks the role of an adapter, else 0: [prompts, adapters]."""
    import torch

    return torch.tensor([[float(bool(scene.marked(role))) for role in roles] for scene in scenes])


def unmarked(scene: Scene, roles: Sequence[Role]) -> list[Role]:
    """Return the roles of adapters that a prompt does not mark, so that routing turns them off."""
    return [role for role in dict.fromkeys(roles) if not scene.marked(role)]
