"""Layer maps of transformers with joint attention (Esser et al., arXiv 2403.03206). Imports no torch.

Image and text tokens are two streams, which meet in the attention of every block. All blocks have one resolution, so
depth is the place of a block: 1 for the first, 0 for the last, because the first blocks are reported to carry semantics
and the last ones details (Unraveling MMDiT Blocks, arXiv 2601.02211). It is our substitute for SDXL's resolutions: the
published studies of FLUX.1's blocks contradict each other. Three sets of layers are in use, and the choice decides
the number of parameters: `attention` (queries, keys, values and outputs of the image stream), `script` (the layers that
diffusers' training script adapts) and `all` (every linear layer of the blocks).

The layers of the blocks have named groups:

    double, single          blocks with separate layers for both streams, and with one set of layers for both (FLUX.1)
    image, text             layers of double blocks that process one stream; those of single blocks process both
    early, middle, late     thirds of the blocks, in the order of the forward pass
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorabench.models.clip import Widths, clip_layers
from lorabench.models.layer import Layer, within
from lorabench.models.layer_map import LayerMap

Config = Mapping[str, Any]
Named = Iterator[tuple[str, Widths]]
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
TEXT_STREAM = re.compile(r"\.(norm1_context|ff_context|attn\.(add_[qkv]_proj|to_add_out))(\.|$)")
THIRDS = ("early", "middle", "late")
TEXT_ATTENTION = (".q_proj", ".k_proj", ".v_proj", ".out_proj")


def transformer_map(
    outside: Sequence[tuple[str, Widths]],
    blocks: Mapping[str, Sequence[tuple[str, Widths]]],
    shorts: Mapping[str, str],
    script: Sequence[str],
    encoders: Mapping[str, tuple[Config, bool]],
) -> LayerMap:
    """Return the layer map of a transformer and its CLIP text encoders.

    Args:
        outside: Layers outside the blocks.
        blocks: Layers of each block by path, in the order of the forward pass.
        shorts: Short name of each block, for figures.
        script: Ends of the paths that diffusers' training script adapts.
        encoders: Configuration of each text encoder that LoRAs adapt, and whether it has a projection.
    """
    last = max(len(blocks) - 1, 1)
    layers = [Layer(name, *widths) for name, widths in outside]
    for place, (block, named) in enumerate(blocks.items()):
        third = THIRDS[3 * place // len(blocks)]
        layers += [
            Layer(name, *widths, depth=1 - place / last, groups=groups_of(name, block, third)) for name, widths in named
        ]
    text = [
        Layer(name, *widths) for encoder, (config, projected) in encoders.items()
        for name, widths in clip_layers(encoder, config, projected)
    ]  # fmt: skip
    inside = [layer.name for layer in layers if any(within(layer.name, block) for block in blocks)]
    attention = [name for name in inside if name.endswith(ATTENTION)]
    return LayerMap(
        {layer.name: layer for layer in layers},
        {layer.name: layer for layer in text},
        frozenset(attention) | {layer.name for layer in text if layer.name.endswith(TEXT_ATTENTION)},
        dict(shorts),
        tuple(blocks),
        tuple(blocks),
        {"script": frozenset(name for name in inside if name.endswith(tuple(script))), "all": frozenset(inside)},
    )


def groups_of(layer: str, block: str, third: str) -> frozenset[str]:
    """Return the groups of a layer: the kind of its block, its stream and its third of the blocks."""
    if block.startswith("single_"):
        return frozenset(("single", third))
    return frozenset(("double", "text" if TEXT_STREAM.search(layer) else "image", third))


def embedder(path: str, inputs: int, width: int) -> Named:
    """Yield the two layers of an embedding of time, guidance or pooled text."""
    yield f"{path}.linear_1", (inputs, width)
    yield f"{path}.linear_2", (width, width)


def feed_forward(path: str, width: int) -> Named:
    """Yield the two layers of a feed-forward network with GELU."""
    yield f"{path}.net.0.proj", (width, 4 * width)
    yield f"{path}.net.2", (4 * width, width)


def projections(path: str, names: Sequence[str], width: int) -> Named:
    """Yield projections of equal widths."""
    for name in names:
        yield f"{path}.{name}", (width, width)
