"""How the attention of a UNet is computed."""

from __future__ import annotations

from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def set_attention(unet: UNet2DConditionModel, attention: str) -> None:
    """Set how attention is computed. Results are equal up to rounding.

    Args:
        unet: Denoiser.
        attention: "sdpa" for PyTorch's fused kernels; "math" for plain products; "sliced" for one head at a time, on
            GPUs without fused kernels; "auto" for "math" on a CPU, which is a quarter faster there, else "sdpa".
    """
    if attention == "sliced":
        unet.set_attention_slice("max")
    else:
        plain = attention == "math" or (attention == "auto" and unet.device.type == "cpu")
        unet.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())
