"""The SDXL family behind one class: SDXL itself, and models of its structure in other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn

from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import attach
from lorabench.models.checkpointing import recomputed
from lorabench.models.files import ModelFiles, model_folder
from lorabench.models.reading import encoders_of, read_pipeline, set_attention

LARGE = 512  # pixels
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


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

    device: where the UNet computes; with `offload` "encoders" the others only come to it while they are used.
    alphas_bar: [T], the share of signal at each timestep.
    resolution: edge of the images in pixels; latents have `latent_edge`.
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline, files: ModelFiles | None = None):
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.device, self.dtype = self.unet.device, self.unet.dtype
        self.encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
        for part in (self.unet, self.vae, *self.encoders):
            part.requires_grad_(False).eval()
        set_attention(self.unet, files.attention if files else "auto")
        self.checkpointing = files is not None and files.checkpointing
        if self.checkpointing:
            self.unet.enable_gradient_checkpointing(recomputed)
        self.offload = files is not None and files.offload == "encoders"
        config: Any = pipeline.scheduler.config
        self.prediction_type: str = config.prediction_type
        # Without signal there is no clean estimate to divide out of predicted noise: diffusers' own floor.
        self.alphas_bar = pipeline.scheduler.alphas_cumprod.to(self.device, torch.float32).clamp(min=2**-24)
        native: int = self.unet.config.sample_size * pipeline.vae_scale_factor
        self.resolution = (files.resolution if files else None) or native
        self.latent_edge = self.resolution // pipeline.vae_scale_factor
        if self.resolution >= LARGE:
            self.vae.enable_slicing()  # image by image: decoding a batch needs more memory than any training step
        self._prompts: dict[str, Conditioning] = {}

    @classmethod
    def load(cls, files: ModelFiles | str | Path, device: str = "cpu") -> SDXL:
        """Load a model, "micro" (the packaged one) or a diffusers folder.  UserError if it holds no SDXL pipeline."""
        if not isinstance(files, ModelFiles):
            files = model_folder(files)
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        pipeline = read_pipeline(files)
        for part in (pipeline.unet, *(() if files.offload == "encoders" else (pipeline.vae, *encoders_of(pipeline)))):
            part.to(device)
        return cls(pipeline, files)

    def new_scheduler(self) -> Any:
        """A scheduler with no sampling under way."""
        return deepcopy(self.pipeline.scheduler)

    @contextmanager
    def present(self, *modules: nn.Module, stay: bool = False) -> Iterator[None]:
        """The modules on the model's device, for as long as they are used; elsewhere they leave its memory free.

        stay: until they are used again, since a backward pass will need their weights.
        """
        for module in modules if self.offload else ():
            module.to(self.device)
        yield
        for module in modules if self.offload and not stay else ():
            module.to("cpu")

    @contextmanager
    def knowing(self, prompts: dict[str, Conditioning]) -> Iterator[None]:
        """These prompts, encoded already, instead of those known so far: other encoders are at work for a while."""
        known, self._prompts = self._prompts, prompts
        try:
            yield
        finally:
            self._prompts = known

    @contextmanager
    def adapted_text(
        self, loras: Sequence[LoRA], scales: Mapping[str, Sequence[float]] | None = None
    ) -> Iterator[None]:
        """The text encoders under the LoRAs' parts for them, for as long as prompts are encoded.

        scales: by layer of `LoRA.text`, strength of each LoRA; None is one for all. Without such parts nothing changes.
        """
        with ExitStack() as stack:
            for encoder in TEXT_ENCODERS:
                head = f"{encoder}."
                parts = [LoRA(beneath(head, lora.text)) for lora in loras]
                if any(parts):
                    stack.enter_context(self.knowing({}))
                    adapters = stack.enter_context(attach(getattr(self.pipeline, encoder), parts))
                    if scales is not None:
                        adapters.rows({layer: torch.tensor([scales[head + layer]]) for layer in adapters.layers})
            yield

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """One row a prompt; every distinct prompt is encoded once in the life of the model."""
        if new := sorted(set(prompts) - self._prompts.keys()):
            with self.present(*self.encoders):
                for prompt in new:
                    embeds, _, pooled, _ = self.pipeline.encode_prompt(
                        prompt, device=self.device, do_classifier_free_guidance=False
                    )
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
        with self.present(self.vae):
            code = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mode()
        return code.float() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [n, c, h, w] of unit scale -> images [n, 3, H, W] in [0, 1], differentiable."""
        code = (latents.float() / self.vae.config.scaling_factor).to(self.vae.dtype)
        present = self.present(self.vae, stay=code.requires_grad)
        with present, torch.autocast(self.device.type, enabled=False):  # bf16 would show as banding
            images = self.vae.decode(code).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def time_ids(self, n: int) -> Tensor:
        """SDXL's size conditioning [n, 6]: original size, crop corner, target size."""
        edge = self.resolution
        return torch.tensor([[edge, edge, 0, 0, edge, edge]] * n, device=self.device)

    def predict(self, sample: Tensor, t: Tensor, prompts: Conditioning, time_ids: Tensor | None = None) -> Tensor:
        """The UNet's output in fp32, noise or velocity by `prediction_type`.

        sample: noised latents [n, c, h, w] of variance 1; t: [n] or a scalar; prompts: n rows.
        time_ids: size conditioning [n, 6]; None is that of a whole image of the model's resolution.
        """
        ids = self.time_ids(len(sample)) if time_ids is None else time_ids.to(self.device)
        added = {"text_embeds": prompts.pooled, "time_ids": ids}
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


def beneath(head: str, factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """The factors whose layer starts so, by the rest of their names."""
    return {layer.removeprefix(head): each for layer, each in factors.items() if layer.startswith(head)}
