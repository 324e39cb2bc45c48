"""Which role dominates a layer: presets, the live UNet's resolutions, or what a layer probe measured.

DuoLoRA (arXiv 2504.13206) finds that layers of low resolution carry content and layers of high resolution style. A
prior says so for the layers of a UNet:

    resolution              below the middle of the resolutions with attention: content; above it: style
    a name in conf/prior    {content: [module paths], style: [module paths]}, as the paper or the released code has it
    a file of that form     what `python run.py task=layer_probe` writes
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lorabench.base import CONF, UserError
from lorabench.config.choices import unknown
from lorabench.data.pairs import ROLES, Role
from lorabench.models.layer import Layer, within

RESOLUTION = "resolution"
Blocks = dict[str, list[str]]  # module paths by role


def read_prior(prior: str | Mapping[str, Any]) -> str | Blocks:
    """A prior as a setting: RESOLUTION, or the blocks of a preset or a file.  UserError for any other."""
    if prior == RESOLUTION:
        return RESOLUTION
    if isinstance(prior, str):
        presets = {path.stem: path for path in (CONF / "prior").glob("*.yaml")}
        path = presets.get(prior, Path(prior))
        if not path.is_file():
            raise UserError(
                unknown("method.prior", prior, [RESOLUTION, *sorted(presets), "a yaml of task=layer_probe"])
            )
        try:
            prior = OmegaConf.to_container(OmegaConf.load(path))  # pyright: ignore[reportAssignmentType]
        except (OSError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(
                f"{path} is no yaml: {str(error).splitlines()[0]}; write it with task=layer_probe"
            ) from None
    if not isinstance(prior, Mapping) or set(prior) != set(ROLES) or not all(map(is_names, prior.values())):
        raise UserError("method.prior needs lists of module paths: {content: [<module path>], style: [<module path>]}")
    return {role: list(prior[role]) for role in ROLES}


def is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def check_prior(prior: str | Blocks, layers: Mapping[str, Layer]) -> None:
    """Check a prior against the layers of a network.

    Raises:
        UserError: If the blocks of a role have no layer, or a layer belongs to both roles.
    """
    if isinstance(prior, str):
        return
    for role in ROLES:
        if prior[role] and not any(within(name, block) for name in layers for block in prior[role]):
            raise UserError(
                f"method.prior must name modules of this network; its {role} layers ({', '.join(prior[role])}) are "
                "not; use method.prior=resolution"
            )
    both = [name for name in layers if len(roles_of(prior, name)) > 1]
    if both:
        raise UserError(f"method.prior must give {both[0]} to content or to style; take it out of one list")


def roles_of(prior: Blocks, name: str) -> list[Role]:
    return [role for role in ROLES if any(within(name, block) for block in prior[role])]


def dominant_role(prior: str | Blocks, layer: Layer) -> Role | None:
    """Return the role that dominates a layer, or None if neither does."""
    if isinstance(prior, str):
        return by_depth(layer)
    return next(iter(roles_of(prior, layer.name)), None)


def dominant_roles(prior: str | Blocks, layers: Mapping[str, Layer]) -> dict[str, Role | None]:
    """Return `dominant_role` of each layer."""
    return {name: dominant_role(prior, layer) for name, layer in layers.items()}


def leads_somewhere(roles: Mapping[str, Role | None]) -> None:
    """UserError unless some layer has a dominant role."""
    if not any(roles.values()):
        raise UserError("the prior has no layer of this UNet; use ablation=no_layer_prior or another method.prior")


def by_depth(layer: Layer) -> Role | None:
    """Content below the middle of the resolutions with attention, style above it, None in the very middle."""
    if layer.depth == 0.5:
        return None
    return "content" if layer.depth > 0.5 else "style"
