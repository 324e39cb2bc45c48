"""Layers of SD3 and FLUX.1 as kohya's trainer saves them: the inverse of transformer_names.py.

Queries, keys and values are one layer of the original code (`qkv`), in FLUX.1's single blocks with the input of the
feed-forward network (`linear1`). If all parts have the same `down`, their rows of `up` are joined, as in a file that
was trained so. Otherwise the factors are blocks on a diagonal, as kohya's `split_qkv` saves them, and the rank is the
sum of the ranks. Parts without an update are zero. All this is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

import torch

from lorabench.base import UserError
from lorabench.lora.factors import Factors, shapes_of, shared_scale
from lorabench.lora.files.names import DENOISER
from lorabench.lora.files.precision import balanced
from lorabench.lora.files.transformer_names import FUSED, PLAIN, SWAPPED, Piece, is_flux, pieces
from lorabench.lora.parts import Parts

NUMBER = re.compile(r"\.(\d+)\.")
FLUX_NAMES = ("double_blocks", "single_blocks", "img_in", "txt_in", "time_in", "vector_in", "guidance_in")
SD3_NAMES = ("joint_blocks", "t_embedder", "y_embedder", "context_embedder")


def original(adapter: Parts) -> Iterator[tuple[str, Factors]]:
    """Yield the factors by "<component>.<original name>", text encoders by component and module path.

    Raises:
        UserError: If the original code has no such layer.
    """
    for name, parts in grouped(adapter).items():
        factors = {layer: adapter.factors[layer] for layer in parts}
        yield f"{DENOISER}.{name}", joined(parts, factors)
    yield from adapter.text.items()


def grouped(adapter: Parts) -> dict[str, dict[str, Piece]]:
    """Return the adapted layers of the denoiser, and their places in the original one, by original name.

    Raises:
        UserError: If the original code has no such layer.
    """
    names = original_names(is_flux(shapes_of(adapter.factors)))
    found: dict[str, dict[str, Piece]] = {}
    for layer in adapter.factors:
        if (place := names.get(general(layer))) is None:
            raise UserError(f"kohya's format has no name for {layer}; use task.format=diffusers")
        number = NUMBER.search(layer)
        found.setdefault(place[0].format(number and number[1]), {})[layer] = place[1]
    return found


@cache
def original_names(flux: bool) -> dict[str, tuple[str, Piece]]:
    """Return original name and place by module path, with "{}" for the number of the block.

    Args:
        flux: The names are those of FLUX.1; otherwise of SD3.
    """
    others = SD3_NAMES if flux else FLUX_NAMES
    names = [each for each in (*FUSED, *PLAIN, *SWAPPED) if not each.startswith(others) and "_processor_" not in each]
    return {general(piece.path): (name, piece) for name in names for piece in pieces(name.format(0)) or ()}


def general(path: str) -> str:
    """Return a module path with "{}" for the number of the block."""
    return NUMBER.sub(".{}.", path, count=1)


def joined(parts: Mapping[str, Piece], factors: Mapping[str, Factors]) -> Factors:
    """Return the factors of an original layer.

    Args:
        parts: Place of each adapted layer in it.
        factors: Factors of these layers.
    """
    [layer, *others] = parts
    if not others and parts[layer].total == 1:
        return parts[layer].of(factors[layer], None)  # swapping halves twice changes nothing
    used = {layer: each for layer, each in factors.items() if not each.is_zero} or dict(factors)
    first, *rest = used.values()
    same = all(torch.equal(each.down, first.down) for each in rest)
    blocks = used if same else {layer: balanced(each) for layer, each in used.items()}
    down = first.down if same else torch.cat([each.down for each in blocks.values()])
    outputs = len(factors[layer].up) // parts[layer].units * parts[layer].total
    up, start = first.up.new_zeros(outputs, len(down)), 0
    for layer, each in blocks.items():
        up[parts[layer].rows(outputs), start : start + each.rank] = each.up
        start += 0 if same else each.rank
    return Factors(down, up, shared_scale([*used.values()]))
