"""The user's LoRAs of a role, as the configuration names them."""

from __future__ import annotations

from typing import Any

from omegaconf import Container, DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.data.concepts import Role
from lorabench.data.markers import parse
from lorabench.tasks.user_loras import UserLoRA


def user_loras(cfg: DictConfig, role: Role, needed: bool = True) -> tuple[UserLoRA, ...]:
    """Return the LoRAs of a role. If there are several, prompts and images are lists of the same length.

    Raises:
        UserError: If there is none and one is needed, or if the lengths differ.
    """
    spec: Any = OmegaConf.to_container(cfg[role])
    paths = as_list(spec["lora"])
    if not paths and needed:
        raise UserError(f"task={cfg.task.name} needs a {role} LoRA; use {role}=<file.safetensors>")
    several = {key: as_list(spec[key]) or [None] * len(paths) for key in ("prompt", "images", "embedding", "trigger")}
    for key, values in several.items():
        if len(values) != len(paths):
            raise UserError(f"{role}.{key} has {len(values)} entries for {len(paths)} LoRAs; give one for each")
    several["prompt"] = [prompt if prompt is None else parse(prompt).text for prompt in several["prompt"]]
    blocks = blocks_of(cfg, role, len(paths))
    return tuple(
        UserLoRA(str(path), prompt, images or (), embedding, trigger, blocks=own, role=role)
        for path, prompt, images, embedding, trigger, own in zip(paths, *several.values(), blocks, strict=True)
    )


def blocks_of(cfg: DictConfig, role: str, count: int) -> list[Any]:
    """Return the weights by block of each LoRA of a role: its own, or those of `blocks` for all."""
    spec: Any = OmegaConf.to_container(cfg[role])
    own, shared = spec["blocks"], cfg.blocks
    if own is None:
        return [OmegaConf.to_object(shared) if isinstance(shared, Container) else shared] * count
    if not isinstance(own, list) or all(isinstance(each, int | float) for each in own):
        return [own] * count
    if len(own) != count:
        raise UserError(f"{role}.blocks has {len(own)} entries for {count} LoRAs; give one for each")
    return own


def as_list(value: Any) -> list[Any]:
    """Return a value as a list; None is empty."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
