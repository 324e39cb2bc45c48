"""The micro SDXL: a `StableDiffusionXLPipeline` with SDXL's block structure and small widths.

SDXL has blocks (320, 640, 1280) with (0, 2, 10) transformer layers on 128x128x4 latents; the micro model has (64, 96,
160) with (0, 1, 2) on 16x16x12. As in SDXL are block names, two attentions per down block and three per up block, the
`text_time` conditioning, and the two text encoders with concatenated penultimate states.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pretraining.tokens import MAX_LENGTH, build_tokenizer

RESOLUTION = 64
LATENT_CHANNELS = 12


def build_unet(
    widths=(64, 96, 160), heads=(2, 3, 5), layers=(1, 1, 2), text_width=96, groups=32
) -> UNet2DConditionModel:
    """Return a UNet with random weights."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=layers,
        attention_head_dim=heads,
        cross_attention_dim=2 * text_width,
        use_linear_projection=True,
        norm_num_groups=groups,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + text_width,
    )


def build_vae(widths=(32, 64, 64), groups=16) -> AutoencoderKL:
    """Return an autoencoder with random weights."""
    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        sample_size=RESOLUTION,
        block_out_channels=widths,
        **blocks,
        layers_per_block=1,
        norm_num_groups=groups,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_text_encoders(
    tokenizer: CLIPTokenizer, text_width=96, layers=3
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Return both text encoders with random weights."""
    config = text_config(tokenizer, text_width, layers)
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


def text_config(tokenizer: CLIPTokenizer, text_width: int, layers: int) -> CLIPTextConfig:
    """Return the configuration of a text encoder."""
    special: Any = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        projection_dim=text_width,
        num_hidden_layers=layers,
        num_attention_heads=text_width // 32,
        max_position_embeddings=MAX_LENGTH,
        **special,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """Return the scheduler: v-prediction, linear betas to 0.02, trailing steps. The noisiest step has an SNR of 4e-5.

    With SDXL's schedule, the mean color of a 16x16 latent would be visible at the noisiest step, and no style adapter
    could turn a background dark or tinted.
    """
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def build_pipeline(
    unet: UNet2DConditionModel | None = None,
    vae: AutoencoderKL | None = None,
    text_encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection] | None = None,
) -> StableDiffusionXLPipeline:
    """Return the complete pipeline. Parts that are not given are initialized; `.save_pretrained(folder)` writes it."""
    tokenizer = build_tokenizer()
    first, second = text_encoders or build_text_encoders(tokenizer)
    scheduler: Any = build_scheduler()
    return StableDiffusionXLPipeline(
        vae=vae or build_vae(),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(),
        unet=unet or build_unet(),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
