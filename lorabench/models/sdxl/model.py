"""The SDXL family: SDXL, KOALA, and models with the same structure in other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor, nn

from lorabench.lora.layer import MaskedLoRA
from lorabench.models import autoencoder
from lorabench.models.checkpointing import recomputed
from lorabench.models.conditioning import Conditioning
from lorabench.models.files import ModelFiles
from lorabench.models.model import DiffusionModel
from lorabench.models.noise import DDPM
from lorabench.models.reading import load_pipeline
from lorabench.models.sampler import Sampler, ScheduledSampler
from lorabench.models.sdxl.attention import set_attention
from lorabench.models.sdxl.layers import TEXT_ENCODERS, layers_of


class SDXL(DiffusionModel):
    """A model made from a StableDiffusionXLPipeline.

    A conditioning has the concatenated hidden states of both text encoders [n, tokens, width], the pooled state of the
    second one [n, width], and the input of the size embedding [n, 6]: original size, crop corner, target size.

    Args:
        pipeline: Pipeline with its weights.
        files: Settings of the model; defaults if None.
    """

    guidance: Literal["cfg", "embedded", "none"] = "cfg"

    def __init__(self, pipeline: StableDiffusionXLPipeline, files: ModelFiles | None = None):
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        encoders = {name: getattr(pipeline, name) for name in TEXT_ENCODERS}
        factor: int = pipeline.vae_scale_factor
        resolution = (files.resolution if files else None) or self.unet.config.sample_size * factor
        edge = resolution // factor
        schedule: Any = pipeline.scheduler
        super().__init__(
            self.unet,
            encoders,
            DDPM(schedule.alphas_cumprod.to(self.unet.device), schedule.config.prediction_type),
            layers_of(self.unet.config, {name: encoder.config.to_dict() for name, encoder in encoders.items()}),
            resolution,
            (self.unet.config.in_channels, edge, edge),
            files is not None and files.offload == "encoders",
        )
        autoencoder.prepare(self.vae, resolution)
        set_attention(self.unet, files.attention if files else "auto")
        if files is not None and files.checkpointing:
            self.unet.enable_gradient_checkpointing(recomputed)

    @classmethod
    def load(cls, files: ModelFiles | str | Path, device: str = "cpu") -> Self:
        """Load a model from its files or its folder (`load_pipeline`)."""
        return cls(*load_pipeline(StableDiffusionXLPipeline, UNet2DConditionModel, files, device))

    def unconditional(self, n: int) -> Conditioning:
        """Return n rows of zeros or of the encoded empty string, depending on the pipeline's configuration."""
        empty = self.encode_prompts([""])
        if dict(self.pipeline.config)["force_zeros_for_empty_prompt"]:
            states, pooled, size = empty.tensors
            empty = Conditioning((torch.zeros_like(states), torch.zeros_like(pooled), size))
        return empty.take([0] * n)

    def with_crops(self, conditioning: Conditioning, crops: Tensor) -> Conditioning:
        states, pooled, _ = conditioning.tensors
        return Conditioning((states, pooled, crops.to(self.device)))

    def predict(
        self,
        xt: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        own: Sequence[Conditioning] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        if guidance is not None:
            raise ValueError("SDXL has no guidance embedding; guide with a second prediction")
        states, pooled, size = conditioning.tensors
        added = {"text_embeds": pooled, "time_ids": size}
        with self.reading([each.tensors[0] for each in own] if own is not None else None):
            return self.unet(xt.to(self.dtype), t, states, added_cond_kwargs=added, return_dict=False)[0].float()

    @contextmanager
    def reading(self, own: Sequence[Tensor] | None) -> Iterator[None]:
        """Set each adapter's own hidden states of a prompt as its input in cross-attention, within the block."""
        readers = (
            []
            if own is None
            else [
                module
                for name, module in self.unet.named_modules()
                if isinstance(module, MaskedLoRA) and name.endswith((".attn2.to_k", ".attn2.to_v"))
            ]
        )
        for module in readers:
            module.own = own
        try:
            yield
        finally:
            for module in readers:
                module.own = None

    def sampler(self, steps: int, kind: str = "model") -> Sampler:
        return ScheduledSampler(self.pipeline.scheduler, steps, self.device, kind)

    def recomputed_blocks(self) -> list[nn.Module]:
        return [each for each in self.unet.modules() if isinstance(each, BasicTransformerBlock | ResnetBlock2D)]

    def _encode(self, prompts: list[str]) -> Conditioning:
        pipeline: Any = self.pipeline  # its annotation of `encode_prompt` allows one prompt only
        states, _, pooled, _ = pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        return Conditioning((states, pooled, self.whole_image(len(prompts))))

    def whole_image(self, n: int) -> Tensor:
        """Return the size conditioning [n, 6] for uncropped images at the model's resolution."""
        edge = self.resolution
        return torch.tensor([[edge, edge, 0, 0, edge, edge]] * n, device=self.device)
