"""The dominant role of each layer: from a preset, from resolution or depth, or from a measurement by a layer probe.

DuoLoRA (arXiv 2504.13206) finds that layers of low resolution carry content and layers of high resolution style. A
prior assigns the layers of a model to these roles:

    resolution              below the middle of the resolutions with attention: content; above it: style
    depth                   transformers: first half of the blocks: content; last half: style
    a name in conf/prior    {content: [module paths], style: [module paths]}, from the paper or the released code
    a file in this form     written by `python run.py task=layer_probe`

All blocks of a transformer have one resolution. The prior by depth is ours: no publication supports it. Both names
stand for the same rule on `Layer.depth`, which is the resolution on SDXL and the place of the block on transformers. So
`resolution`, the value of the presets, is by depth on a transformer; a note below the table names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorabench.base import UserError
from lorabench.data.concepts import ROLES, Role
from lorabench.models.layer import Layer
from lorabench.models.layer_sets import LayerSets, read_layer_sets

RESOLUTION, DEPTH = "resolution", "depth"
Blocks = LayerSets


def read_prior(prior: str | Mapping[str, Any]) -> str | Blocks:
    """Return the prior for a setting: RESOLUTION, DEPTH, or the blocks of a preset, a file or a mapping.

    Raises:
        UserError: If it is none of these.
    """
    if isinstance(prior, str) and prior in (RESOLUTION, DEPTH):
        return prior
    return read_layer_sets("method.prior", prior, "prior", [RESOLUTION, DEPTH])


def check_prior(prior: str | Blocks, layers: Mapping[str, Layer]) -> None:
    """Check a prior against the layers of a network.

    Raises:
        UserError: If the blocks of a role have no layer, or a layer belongs to both roles.
    """
    if isinstance(prior, str):
        return
    for role in ROLES:
        if prior[role] and not any(layer.inside(block) for layer in layers.values() for block in prior[role]):
            raise UserError(
                f"method.prior must name modules of this model; its {role} layers ({', '.join(prior[role])}) are "
                f"not; use method.prior={DEPTH if on_transformer(layers) else RESOLUTION}"
            )
    both = [name for name, layer in layers.items() if len(roles_of(prior, layer)) > 1]
    if both:
        raise UserError(f"method.prior must give {both[0]} to content or to style; remove it from one list")


def roles_of(prior: Blocks, layer: Layer) -> list[Role]:
    """Return the roles to which a prior assigns a layer."""
    return [role for role in ROLES if any(map(layer.inside, prior[role]))]


def dominant_role(prior: str | Blocks, layer: Layer) -> Role | None:
    """Return the role that dominates a layer, or None if neither does."""
    if isinstance(prior, str):
        return by_depth(layer)
    return next(iter(roles_of(prior, layer)), None)


def dominant_roles(prior: str | Blocks, layers: Mapping[str, Layer]) -> dict[str, Role | None]:
    """Return `dominant_role` of each layer."""
    return {name: dominant_role(prior, layer) for name, layer in layers.items()}


def check_dominant(roles: Mapping[str, Role | None]) -> None:
    """Check that some layer has a dominant role.

    Raises:
        UserError: If none has.
    """
    if not any(roles.values()):
        raise UserError("method.prior must have an adapted layer of this model; use ablation=no_layer_prior")


def prior_note(prior: str | Blocks, layers: Mapping[str, Layer]) -> str | None:
    """Return a sentence on a prior by depth on a transformer; None for other priors and models."""
    if isinstance(prior, str) and on_transformer(layers):
        return "the layer prior is by depth, ours: content in the first half of the blocks, style in the last"
    return None


def on_transformer(layers: Mapping[str, Layer]) -> bool:
    """Return True if layers are those of a transformer, which have groups."""
    return any(layer.groups for layer in layers.values())


def by_depth(layer: Layer) -> Role | None:
    """Return content for the coarser half of the depths, style for the finer one, and None exactly between them."""
    if layer.depth == 0.5:
        return None
    return "content" if layer.depth > 0.5 else "style"
