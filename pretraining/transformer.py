"""The micro SD3: a `StableDiffusion3Pipeline` with SD3's blocks and small widths, and its loss.

SD3 medium has 24 blocks of width 1536 on 64x64 patches of 2x2 latents; the micro model has 6 of width 192 on 8x8
patches. As in SD3 are the two streams, the pooled text in the modulation, and the two CLIP encoders with concatenated
penultimate states. There is no T5, so there are no T5 tokens: `joint_attention_dim` is the width of the CLIP states.
Queries and keys are normalized, as in SD3.5.

The loss is that of SD3 (Esser et al., arXiv 2403.03206): the squared error of v = eps - x_0, at levels drawn from the
logit-normal law and moved to noise by the scheduler's shift of 3.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from lorabench.models.flow import FlowMatching, trained_levels
from pretraining.architecture import LATENT_CHANNELS, RESOLUTION, build_vae, text_config
from pretraining.loss import Loss
from pretraining.tokens import build_tokenizer

TEXT_WIDTH = 96
SHIFT = 3.0


def build_transformer(width=192, heads=3, blocks=6, text_width=TEXT_WIDTH) -> SD3Transformer2DModel:
    """Return a transformer with random weights, whose blocks change nothing at first (adaLN-Zero, arXiv 2212.09748)."""
    size = RESOLUTION // 4
    transformer = SD3Transformer2DModel(
        sample_size=size,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=blocks,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=2 * text_width,
        caption_projection_dim=width,
        pooled_projection_dim=2 * text_width,
        pos_embed_max_size=size // 2,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():
        if name.endswith((".norm1.linear", ".norm1_context.linear", "norm_out.linear")) or name == "proj_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return SD3's scheduler."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def build_sd3_pipeline(
    transformer: SD3Transformer2DModel | None = None,
    vae: AutoencoderKL | None = None,
    text_encoders: tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection] | None = None,
) -> StableDiffusion3Pipeline:
    """Return the complete pipeline. Parts that are not given are initialized; `.save_pretrained(folder)` writes it."""
    first, second = text_encoders or build_clip_encoders()
    absent: Any = None
    return StableDiffusion3Pipeline(
        transformer=transformer or build_transformer(),
        scheduler=build_flow_scheduler(),
        vae=vae or build_vae(),
        text_encoder=first,
        tokenizer=build_tokenizer(),
        text_encoder_2=second,
        tokenizer_2=build_tokenizer(),
        text_encoder_3=absent,
        tokenizer_3=absent,
    )


def build_clip_encoders(
    text_width=TEXT_WIDTH, layers=3
) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """Return both text encoders with random weights."""
    config = text_config(build_tokenizer(), text_width, layers)
    return CLIPTextModelWithProjection(config), CLIPTextModelWithProjection(config)


class TransformerDenoiser(nn.Module):
    """Transformer and text encoders, combined as in `StableDiffusion3Pipeline`."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder, self.text_encoder_2 = build_clip_encoders()

    def forward(self, latents: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predict v.

        Args:
            latents: Noisy latents [n, 12, 16, 16].
            t: Noise levels [n], 1000 for noise.
            ids: Token ids [n, 32].
        """
        texts = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        return self.transformer(
            latents,
            timestep=t,
            encoder_hidden_states=torch.cat([text.hidden_states[-2] for text in texts], dim=-1),
            pooled_projections=torch.cat([text.text_embeds for text in texts], dim=-1),
            return_dict=False,
        )[0]


class FlowLoss(Loss):
    """The error of v with the weight 1."""

    levels = (100, 300, 500, 700, 850, 950)

    def __init__(self) -> None:
        super().__init__()
        self.process = FlowMatching(trained_levels(build_flow_scheduler().config))

    def timesteps(self, n: int, rng: torch.Generator) -> Tensor:
        return self.process.timesteps(n, rng, "logit_normal")

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.add_noise(x0, noise, t), self.process.target(x0, noise, t)
