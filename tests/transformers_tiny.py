"""Random SD3 and FLUX.1 pipelines with the structure of the real ones and few channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from lorabench.models.files import model_folder
from lorabench.models.load import load
from lorabench.models.model import DiffusionModel
from pretraining.architecture import build_text_encoders
from pretraining.architecture import build_vae as build_micro_vae
from pretraining.tokens import build_tokenizer
from pretraining.transformer import build_clip_encoders, build_sd3_pipeline, build_transformer

WIDTH = 32


def build_vae() -> AutoencoderKL:
    """Return an autoencoder with 16 latent channels and one halving, shifted and scaled as SD3's."""
    blocks: dict[str, Any] = {  # diffusers' annotations allow one block only
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(
        **blocks,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def save_sd3(path: Path, dual: tuple[int, ...] = (0,)) -> Path:
    """Save an SD3.5 medium of 3 blocks without T5; `dual` are its blocks with a second attention."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoders = [CLIPTextModelWithProjection(build_text_encoders(tokenizer, WIDTH, 2)[0].config) for _ in range(2)]
    transformer = SD3Transformer2DModel(
        sample_size=8, num_layers=3, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=2 * WIDTH + 8,
        caption_projection_dim=32, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8, dual_attention_layers=dual,
        qk_norm="rms_norm",
    )  # fmt: skip
    missing: Any = None
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=build_vae(),
        text_encoder=encoders[0], tokenizer=tokenizer, text_encoder_2=encoders[1], tokenizer_2=tokenizer,
        text_encoder_3=missing, tokenizer_3=missing,
    )  # fmt: skip
    pipeline.save_pretrained(path)
    return path


def save_micro_sd3(path: Path) -> Path:
    """Save a pipeline with the structure of the micro SD3, random modulation and few channels."""
    torch.manual_seed(0)
    transformer = build_transformer(32, 2, 2, text_width=32)
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    vae = build_micro_vae((8, 8, 8), groups=8)
    build_sd3_pipeline(transformer, vae, build_clip_encoders(32, 2)).save_pretrained(path)
    return path


def save_flux(path: Path, guidance: bool = True) -> Path:
    """Save a FLUX.1 of 2 double and 2 single blocks; with `guidance` it is dev, otherwise schnell."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((f"▁{word}", -1.0) for word in ["a", "dog", "in", "szn"]),
    ]
    words = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    t5 = T5EncoderModel(T5Config(vocab_size=len(vocabulary), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=4))
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=guidance, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance, shift=3.0 if guidance else 1.0)
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=build_vae(),
        text_encoder=build_text_encoders(tokenizer, WIDTH, 2)[0],
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=T5Tokenizer(tokenizer_object=words, extra_ids=0),
    )
    pipeline.save_pretrained(path)
    return path


def tiny_transformer(name: str, folder: Path) -> DiffusionModel:
    """Return "sd3", "dev" or "schnell" (FLUX.1) at 16 pixels; the default of FLUX.1 is 128 latents wide."""
    path = save_sd3(folder / name) if name == "sd3" else save_flux(folder / name, guidance=name == "dev")
    return load(replace(model_folder(path), resolution=16))
