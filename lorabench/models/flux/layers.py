"""The layers of FLUX.1, from its configuration. Imports no torch.

Double blocks (`transformer_blocks`) have separate layers for image and text tokens. Single blocks
(`single_transformer_blocks`) process both with the same layers; their `proj_out` reads the outputs of attention and
feed-forward together. Paths must match exactly: "transformer_blocks.7" is the end of "single_transformer_blocks.7".
"""

from __future__ import annotations

from collections.abc import Mapping

from lorabench.models.layer_map import LayerMap
from lorabench.models.transformer_layers import Config, Named, embedder, feed_forward, projections, transformer_map

SCRIPT = (
    *(
        f".attn.{name}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    ),
    ".ff.net.0.proj", ".ff.net.2", ".ff_context.net.0.proj", ".ff_context.net.2",
)  # fmt: skip
TIME = 256  # width of the sinusoidal embeddings of time and guidance


def layers_of(transformer: Config, encoders: Mapping[str, Config]) -> LayerMap:
    """Return the layer map of a FLUX.1 model.

    Args:
        transformer: Configuration of the transformer.
        encoders: Configuration of the CLIP text encoder by name.
    """
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    channels = transformer["in_channels"]
    outside = [
        *embedder("time_text_embed.timestep_embedder", TIME, width),
        *(embedder("time_text_embed.guidance_embedder", TIME, width) if transformer["guidance_embeds"] else ()),
        *embedder("time_text_embed.text_embedder", transformer["pooled_projection_dim"], width),
        ("context_embedder", (transformer["joint_attention_dim"], width)),
        ("x_embedder", (channels, width)),
        ("norm_out.linear", (width, 2 * width)),
        ("proj_out", (width, transformer["patch_size"] ** 2 * (transformer.get("out_channels") or channels))),
    ]
    double = [f"transformer_blocks.{i}" for i in range(transformer["num_layers"])]
    single = [f"single_transformer_blocks.{i}" for i in range(transformer["num_single_layers"])]
    blocks = {
        **{path: list(double_layers(path, width)) for path in double},
        **{path: list(single_layers(path, width)) for path in single},
    }
    shorts = {
        **{path: f"double {i}" for i, path in enumerate(double)},
        **{path: f"single {i}" for i, path in enumerate(single)},
    }
    return transformer_map(outside, blocks, shorts, SCRIPT, {name: (each, False) for name, each in encoders.items()})


def double_layers(path: str, width: int) -> Named:
    """Yield the layers of a block with separate layers for image and text."""
    yield f"{path}.norm1.linear", (width, 6 * width)
    yield f"{path}.norm1_context.linear", (width, 6 * width)
    yield from projections(f"{path}.attn", ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"), width)
    yield from projections(f"{path}.attn", ("to_out.0", "to_add_out"), width)
    yield from feed_forward(f"{path}.ff", width)
    yield from feed_forward(f"{path}.ff_context", width)


def single_layers(path: str, width: int) -> Named:
    """Yield the layers of a block with one set of layers for image and text."""
    yield f"{path}.norm.linear", (width, 3 * width)
    yield f"{path}.proj_mlp", (width, 4 * width)
    yield from projections(f"{path}.attn", ("to_q", "to_k", "to_v"), width)
    yield f"{path}.proj_out", (5 * width, width)
