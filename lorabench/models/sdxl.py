"""The SDXL family behind one class: SDXL itself, and models of its structure in other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from lorabench.weights import sdxl_folder


class Conditioning(NamedTuple):
    """What the UNet knows of n prompts.

    embeds: [n, tokens, width] of both text encoders side by side.
    pooled: [n, width] of the second one.
    """

    embeds: Tensor
    pooled: Tensor

    def take(self, rows: Tensor | list[int]) -> Conditioning:
        return Conditioning(self.embeds[rows], self.pooled[rows])

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        return Conditioning(torch.cat([part.embeds for part in parts]), torch.cat([part.pooled for part in parts]))


class SDXL:
    """The parts of a StableDiffusionXLPipeline, frozen, with the arithmetic that its scheduler asks for.

    alphas_bar: [T], the share of signal at each timestep.
    resolution: edge of the images in pixels.
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline):
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.device, self.dtype = self.unet.device, self.unet.dtype
        for part in (self.unet, self.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(False).eval()
        if self.device.type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())  # a quarter faster than SDPA on a CPU
        config: Any = pipeline.scheduler.config
        self.prediction_type: str = config.prediction_type
        # Without signal there is no clean estimate to divide out of predicted noise: diffusers' own floor.
        self.alphas_bar = pipeline.scheduler.alphas_cumprod.to(self.device, torch.float32).clamp(min=2**-24)
        self.resolution: int = self.unet.config.sample_size * pipeline.vae_scale_factor
        self._prompts: dict[str, Conditioning] = {}

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> SDXL:
        """Load "micro", the packaged model, or a diffusers folder.  UserError if it holds no SDXL pipeline.

        The VAE stays in fp32: SDXL's overflows in fp16.
        """
        folder = sdxl_folder(path)
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        dtypes = {"default": dtype, "vae": torch.float32}
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=dtypes, local_files_only=True)
        return cls(pipeline.to(device))

    def new_scheduler(self) -> Any:
        """A scheduler with no sampling under way."""
        return deepcopy(self.pipeline.scheduler)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """One row a prompt; every distinct prompt is encoded once in the life of the model."""
        for prompt in set(prompts) - self._prompts.keys():
            embeds, _, pooled, _ = self.pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
            self._prompts[prompt] = Conditioning(embeds, pooled)
        return Conditioning.join([self._prompts[prompt] for prompt in prompts])

    def encode_nothing(self, n: int) -> Conditioning:
        """n rows of the empty prompt: zeros or the encoded empty string, as the pipeline is configured."""
        empty = self.encode_prompts([""])
        if dict(self.pipeline.config)["force_zeros_for_empty_prompt"]:
            empty = Conditioning(torch.zeros_like(empty.embeds), torch.zeros_like(empty.pooled))
        return empty.take([0] * n)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """[n, 3, H, W] in [-1, 1] -> latents [n, c, h, w] of unit scale, the mode of what the encoder says."""
        return self.vae.encode(images.to(self.device)).latent_dist.mode() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [n, c, h, w] of unit scale -> images [n, 3, H, W] in [0, 1], differentiable."""
        with torch.autocast(self.device.type, enabled=False):  # half precision would show as banding
            images = self.vae.decode(latents.float() / self.vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1)

    def time_ids(self, n: int) -> Tensor:
        """SDXL's size conditioning [n, 6]: original size, crop corner, target size."""
        edge = self.resolution
        return torch.tensor([[edge, edge, 0, 0, edge, edge]] * n, device=self.device, dtype=self.dtype)

    def predict(self, sample: Tensor, t: Tensor, prompts: Conditioning) -> Tensor:
        """The UNet's output in fp32, noise or velocity by `prediction_type`.

        sample: noised latents [n, c, h, w] of variance 1; t: [n] or a scalar; prompts: n rows.
        """
        added = {"text_embeds": prompts.pooled, "time_ids": self.time_ids(len(sample))}
        sample = sample.to(self.dtype)
        return self.unet(sample, t, prompts.embeds, added_cond_kwargs=added, return_dict=False)[0].float()

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps; t: [n]."""
        signal, spread = self._signal_and_spread(t)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the UNet should predict for x_t: eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0."""
        signal, spread = self._signal_and_spread(t)
        return noise if self.prediction_type == "epsilon" else signal * noise - spread * latents

    def clean_estimate(self, sample: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """x_0 from x_t and a prediction, by the conversion that the schedulers make inside their steps.

        (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), or sqrt(abar_t) x_t - sqrt(1 - abar_t) v.
        """
        signal, spread = self._signal_and_spread(t)
        if self.prediction_type == "epsilon":
            return (sample - spread * prediction) / signal
        return signal * sample - spread * prediction

    def _signal_and_spread(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alphas_bar[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size -> [n, 3, H, W] in [-1, 1]."""
    stack = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2) / 127.5 - 1
