"""Token embeddings (textual inversion) in the conventions of other programs.

    keys                                      written by                                             trigger
    clip_l, clip_g                            kohya, diffusers' advanced DreamBooth (`*_emb`)        name of the file
    text_encoders_0, text_encoders_1          cog-sdxl (`embeddings.pti`)                            name of the file
    emb_params; string_to_param.*             kohya and A1111 for a model of one encoder             name of the file
    <trigger>                                 diffusers' `learned_embeds`                            the key
    bundle_emb.<trigger>.clip_l, .clip_g      OneTrainer and A1111, inside a LoRA file               in the key

An embedding of a trigger is {encoder: [n, width]}: n vectors replace the trigger in the prompt of that text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorabench.base import UserError

Tokens = dict[str, dict[str, Tensor]]  # by trigger and text encoder, [vectors, width]

ENCODERS = {
    "clip_l": "text_encoder", "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder", "text_encoders_1": "text_encoder_2",
}  # fmt: skip
NAMES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # as they are written
UNNAMED = re.compile(r"emb_params|string_to_param\..+")
BUNDLE = re.compile(r"bundle_emb\.(?P<trigger>.+)\.(?P<part>clip_l|clip_g|emb_params|string_to_param\..+)")
TRIGGER = "lorabench.trigger"  # metadata key
WIDE = 1280  # width of SDXL's second encoder; its first, and SD1.5's only one, have 768


def is_embedding(shapes: Mapping[str, Sequence[int]]) -> bool:
    """Return whether the tensors of these names and shapes are token embeddings and nothing else."""
    if not shapes:
        return False
    if all(key in ENCODERS or UNNAMED.fullmatch(key) or BUNDLE.fullmatch(key) for key in shapes):
        return True
    [(key, shape), *others] = shapes.items()
    return not others and len(shape) <= 2 and "." not in key


def bundled(keys: Iterable[str]) -> list[str]:
    """Return the keys of the embeddings inside a LoRA file."""
    return [key for key in keys if BUNDLE.fullmatch(key)]


def read_tokens(
    path: Path, keys: Iterable[str], read: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> Tokens:
    """Return the embeddings under these keys of a file, in fp32.

    Args:
        path: The file, whose name is the trigger if neither a key nor the metadata has it.
        keys: Keys of embeddings only.
        read: Returns the tensor of a key.
        metadata: Metadata of the file.

    Raises:
        UserError: If a tensor is not a finite float matrix, or two keys hold the same embedding.
    """
    tokens: Tokens = {}
    name = (metadata or {}).get(TRIGGER, path.stem.removesuffix("_emb"))
    for key in keys:
        vectors = read(key)
        if not vectors.is_floating_point() or vectors.ndim not in (1, 2) or not vectors.numel():
            raise UserError(
                f"{path} has an embedding {key!r} of shape {list(vectors.shape)}; give one of shape [vectors, width]"
            )
        vectors = vectors.float().reshape(-1, vectors.shape[-1])
        if not torch.isfinite(vectors).all():
            raise UserError(f"{path} has an embedding {key!r} with values that are not finite; download the file again")
        trigger, encoder = place(name, key, vectors.shape[-1])
        if encoder in tokens.setdefault(trigger, {}):
            raise UserError(f"{path} has two embeddings of {trigger!r} for one text encoder; keep one of them")
        tokens[trigger][encoder] = vectors
    return {trigger: dict(sorted(encoders.items())) for trigger, encoders in tokens.items()}


def place(name: str, key: str, width: int) -> tuple[str, str]:
    """Return the trigger, `name` unless the key has one, and the text encoder, by the width unless the key has it."""
    by_width = "text_encoder_2" if width == WIDE else "text_encoder"
    if match := BUNDLE.fullmatch(key):
        return match["trigger"], ENCODERS.get(match["part"], by_width)
    if key in ENCODERS or UNNAMED.fullmatch(key):
        return name, ENCODERS.get(key, by_width)
    return key, by_width


def bundle(tokens: Tokens) -> dict[str, Tensor]:
    """Return embeddings under their keys inside a LoRA file."""
    return {
        f"bundle_emb.{trigger}.{NAMES[encoder]}": vectors
        for trigger, encoders in tokens.items()
        for encoder, vectors in encoders.items()
    }


def separate(tokens: Tokens, path: Path) -> dict[Path, tuple[str, dict[str, Tensor]]]:
    """Return trigger and tensors by path for embedding files next to a LoRA file; every program reads such files.

    Embeddings inside a LoRA file are read by A1111, Forge and OneTrainer. diffusers 0.42 refuses such a file.
    """
    ending = {trigger: f"_{index}" if index else "" for index, trigger in enumerate(tokens)}
    return {
        path.with_name(f"{path.stem}{ending[trigger]}_emb.safetensors"): (
            trigger,
            {NAMES[encoder]: vectors for encoder, vectors in encoders.items()},
        )
        for trigger, encoders in tokens.items()
    }


def joined(several: Sequence[Tokens]) -> Tokens:
    """Join the embeddings of several adapters; if a trigger has two embeddings, the second is renamed.

    "<s0>" becomes "<s0>_2". Equal embeddings of one trigger are joined into one.
    """
    together: Tokens = {}
    for tokens in several:
        for trigger, encoders in tokens.items():
            name, count = trigger, 1
            while name in together and not same(together[name], encoders):
                count += 1
                name = f"{trigger}_{count}"
            together[name] = encoders
    return together


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Return whether two embeddings are equal in every text encoder."""
    return left.keys() == right.keys() and all(torch.equal(left[encoder], right[encoder]) for encoder in left)
