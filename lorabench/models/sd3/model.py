"""SD3 and SD3.5: a transformer with two streams, true classifier-free guidance and unpacked latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from diffusers.models.attention import JointTransformerBlock
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from torch import Tensor, nn

from lorabench.base import UserError
from lorabench.models import autoencoder
from lorabench.models.checkpointing import recomputed
from lorabench.models.conditioning import Conditioning
from lorabench.models.families import SD3 as FAMILY
from lorabench.models.files import ModelFiles
from lorabench.models.flow import FlowMatching, FlowSampler, sampled_levels, trained_levels
from lorabench.models.model import DiffusionModel
from lorabench.models.reading import load_pipeline
from lorabench.models.sampler import Sampler
from lorabench.models.schedulers import check_own_sampler
from lorabench.models.sd3.layers import FIRST, layers_of

T5_TOKENS = 256  # as in diffusers' pipeline


class SD3(DiffusionModel):
    """The parts of a StableDiffusion3Pipeline.

    A conditioning holds the hidden states of all text encoders [n, tokens, width] and the pooled states of the CLIP
    encoders side by side [n, width]. If T5 is absent, its tokens are zeros, as in diffusers. A transformer whose text
    is as wide as the states of the CLIP encoders was trained without T5 and gets no tokens of it (micro_sd3); with
    diffusers' pipeline, use `max_sequence_length=0`.

    Args:
        pipeline: Pipeline with its weights; T5 may be absent.
        files: Settings of the model; defaults if None.
    """

    guidance: Literal["cfg", "embedded", "none"] = "cfg"

    def __init__(self, pipeline: StableDiffusion3Pipeline, files: ModelFiles | None = None):
        self.pipeline, self.vae, self.transformer = pipeline, pipeline.vae, pipeline.transformer
        encoders = {name: getattr(pipeline, name) for name in FAMILY.encoders if getattr(pipeline, name) is not None}
        factor: int = pipeline.vae_scale_factor
        config: Any = self.transformer.config
        resolution = (files.resolution if files else None) or config.sample_size * factor
        super().__init__(
            self.transformer,
            adapted(encoders),
            FlowMatching(trained_levels(pipeline.scheduler.config).to(self.transformer.device)),
            layers_of(config, {name: encoders[name].config.to_dict() for name in FAMILY.adapted}),
            resolution,
            (config.in_channels, resolution // factor, resolution // factor),
            files is not None and files.offload == "encoders",
        )
        clip = sum(encoders[name].config.hidden_size for name in FAMILY.encoders[:2])
        self.t5_tokens = T5_TOKENS if config.joint_attention_dim > clip else 0
        autoencoder.prepare(self.vae, resolution)
        if files is not None and files.checkpointing:
            self.transformer.enable_gradient_checkpointing(recomputed)

    @classmethod
    def load(cls, files: ModelFiles | str | Path, device: str = "cpu") -> Self:
        """Load a model from its files or its folder (`load_pipeline`)."""
        return cls(*load_pipeline(StableDiffusion3Pipeline, SD3Transformer2DModel, files, device))

    def predict(
        self,
        xt: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        own: Sequence[Conditioning] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        if guidance is not None:
            raise ValueError("SD3 has no guidance embedding; guide with a second prediction")
        refuse_own(own)
        states, pooled = conditioning.tensors
        return self.transformer(
            xt.to(self.dtype),
            timestep=t.expand(len(xt)),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            return_dict=False,
        )[0].float()

    def sampler(self, steps: int, kind: str = "model") -> Sampler:
        """Return Euler steps along the levels that diffusers' pipeline uses."""
        check_own_sampler(kind)
        config: Any = self.transformer.config
        _, height, width = self.latent_shape
        tokens = (height // config.patch_size) * (width // config.patch_size)
        return FlowSampler(sampled_levels(self.pipeline.scheduler, steps, tokens).to(self.device))

    def recomputed_blocks(self) -> list[nn.Module]:
        return [each for each in self.transformer.modules() if isinstance(each, JointTransformerBlock)]

    def _encode(self, prompts: list[str]) -> Conditioning:
        pipeline: Any = self.pipeline  # its annotation of `encode_prompt` allows one prompt only
        states, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.t5_tokens,
        )
        return Conditioning((states.to(self.dtype), pooled.to(self.dtype)))


def adapted(encoders: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return the text encoders by the first part of their layers' names.

    SD3's first encoder has a projection, so its layers are one level deeper than those of the same encoder in SDXL and
    FLUX.1. LoRA files have one name for both, so the inner module stands for it here, next to its projection.
    """
    first = encoders[FIRST]
    return {**encoders, FIRST: first.text_model, f"{FIRST}_projection": first.text_projection}


def refuse_own(own: Sequence[Conditioning] | None) -> None:
    """Raise UserError for prompts by adapter: joint attention has no layer that reads only the prompt.

    Every block rewrites the text stream from both streams, so a text stream per adapter would not be exact.
    """
    if own is not None:
        raise UserError(
            "prompts by adapter need cross-attention, and this model has joint attention, which rewrites the text in "
            "every block; use ablation=no_prompt_separation, or an SDXL model"
        )
