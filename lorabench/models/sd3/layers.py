"""The layers of SD3 and SD3.5, from their configurations. Imports no torch.

The last block has no output for the text stream. SD3.5 medium has a second attention on image tokens (`attn2`) in its
first blocks, which diffusers' training script does not adapt.
"""

from __future__ import annotations

from collections.abc import Mapping

from lorabench.models.layer_map import LayerMap
from lorabench.models.transformer_layers import Config, Named, embedder, feed_forward, projections, transformer_map

SCRIPT = tuple(
    f".attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
FIRST = "text_encoder"  # its layers have the same paths as in SDXL and FLUX.1, where it has no projection
TIME = 256  # width of the sinusoidal embedding of time


def layers_of(transformer: Config, encoders: Mapping[str, Config]) -> LayerMap:
    """Return the layer map of an SD3 model.

    Args:
        transformer: Configuration of the transformer.
        encoders: Configurations of the CLIP text encoders by name.
    """
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    count = transformer["num_layers"]
    outside = [
        *embedder("time_text_embed.timestep_embedder", TIME, width),
        *embedder("time_text_embed.text_embedder", transformer["pooled_projection_dim"], width),
        ("context_embedder", (transformer["joint_attention_dim"], transformer["caption_projection_dim"])),
        ("norm_out.linear", (width, 2 * width)),
        (
            "proj_out",
            (width, transformer["patch_size"] ** 2 * (transformer["out_channels"] or transformer["in_channels"])),
        ),
    ]
    dual = tuple(transformer.get("dual_attention_layers") or ())
    blocks = {
        f"transformer_blocks.{i}": list(block_layers(f"transformer_blocks.{i}", width, i in dual, i == count - 1))
        for i in range(count)
    }
    clip = {name: (each, name != FIRST) for name, each in encoders.items()}
    shorts = {path: f"block {path.rpartition('.')[2]}" for path in blocks}
    return transformer_map(outside, blocks, shorts, SCRIPT, clip)


def block_layers(path: str, width: int, dual: bool, last: bool) -> Named:
    """Yield the layers of a block.

    Args:
        path: Path of the block.
        width: Channels.
        dual: The block has a second attention on image tokens.
        last: The block has no output for the text stream.
    """
    yield f"{path}.norm1.linear", (width, (9 if dual else 6) * width)
    yield f"{path}.norm1_context.linear", (width, (2 if last else 6) * width)
    yield from projections(f"{path}.attn", ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj"), width)
    yield from projections(f"{path}.attn", ("to_out.0",) if last else ("to_out.0", "to_add_out"), width)
    if dual:
        yield from projections(f"{path}.attn2", ("to_q", "to_k", "to_v", "to_out.0"), width)
    yield from feed_forward(f"{path}.ff", width)
    if not last:
        yield from feed_forward(f"{path}.ff_context", width)
