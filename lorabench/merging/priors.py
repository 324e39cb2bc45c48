"""The dominant role of each layer: from a preset, from resolutions, or from a measurement by a layer probe.

DuoLoRA (arXiv 2504.13206) finds that layers of low resolution carry content and layers of high resolution style. A
prior assigns the layers of a UNet to these roles:

    resolution              below the middle of the resolutions with attention: content; above it: style
    a name in conf/prior    {content: [module paths], style: [module paths]}, from the paper or the released code
    a file in this form     written by `python run.py task=layer_probe`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorabench.base import UserError
from lorabench.data.concepts import ROLES, Role
from lorabench.models.layer import Layer
from lorabench.models.layer_sets import LayerSets, read_layer_sets

RESOLUTION = "resolution"
Blocks = LayerSets


def read_prior(prior: str | Mapping[str, Any]) -> str | Blocks:
    """Return the prior for a setting: RESOLUTION, or the blocks of a preset, a file or a mapping.

    Raises:
        UserError: If it is none of these.
    """
    if prior == RESOLUTION:
        return RESOLUTION
    return read_layer_sets("method.prior", prior, "prior", [RESOLUTION])


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
                f"method.prior must name modules of this network; its {role} layers ({', '.join(prior[role])}) are "
                "not; use method.prior=resolution"
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
        raise UserError("the prior has no layer of this UNet; use ablation=no_layer_prior or another method.prior")


def by_depth(layer: Layer) -> Role | None:
    """Return content below the middle of the resolutions with attention, style above it, and None exactly there."""
    if layer.depth == 0.5:
        return None
    return "content" if layer.depth > 0.5 else "style"
