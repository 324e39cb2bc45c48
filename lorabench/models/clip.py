"""The layers of CLIP's text encoders, from their configurations. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Widths = tuple[int, int]  # in, out


def clip_layers(encoder: str, config: Mapping[str, Any], projection: bool) -> Iterator[tuple[str, Widths]]:
    """Yield the layers of a text encoder by path, in the order of the forward pass.

    Args:
        encoder: Name of the encoder, with which the paths start.
        config: Its configuration.
        projection: The encoder is a CLIPTextModelWithProjection, whose paths transformers 5 names differently.
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    path = f"{encoder}.text_model.encoder" if projection else f"{encoder}.encoder"
    for k in range(config["num_hidden_layers"]):
        head = f"{path}.layers.{k}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{head}.self_attn.{name}", (width, width)
        yield f"{head}.mlp.fc1", (width, inner)
        yield f"{head}.mlp.fc2", (inner, width)
    if projection:
        yield f"{encoder}.text_projection", (width, config["projection_dim"])
