"""The interface of a diffusion model, which methods, losses and sampling rules use.

A model consists of a denoiser, text encoders, an autoencoder and a noise process. A family (`lorabench/models/sdxl`)
implements the abstract methods and hides everything else: packing of latents, size embeddings, sign and unit of time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorabench.lora.adapter import Adapter
from lorabench.lora.files.embeddings import Tokens, joined
from lorabench.lora.layer import Adapters, AllMasks, attach, changed_weights
from lorabench.models import autoencoder
from lorabench.models.conditioning import Conditioning
from lorabench.models.layer_map import LayerMap
from lorabench.models.noise import NoiseProcess
from lorabench.models.prompt_cache import PromptCache
from lorabench.models.sampler import Sampler
from lorabench.models.tokens import learned_tokens, word_embeddings


class DiffusionModel(ABC):
    """A frozen text-to-image model.

    Args:
        denoiser: The network to which adapters are attached.
        text: Text encoders, by the first part of their layers' names.
        process: Noise process.
        layers: Linear layers of denoiser and text encoders.
        resolution: Width and height of images in pixels.
        latent_shape: Channels, height and width of latents.
        offload: Keep text encoders and autoencoder on the CPU while they are not used.

    Attributes:
        guidance: "cfg" if guidance is a second prediction under the empty prompt, "embedded" if its scale is an input
            of the denoiser, "none" if the model has no guidance.
        device: Device of the denoiser.
        dtype: Type of its weights.
        pipeline: Pipeline of diffusers, with its tokenizers.
        vae: Autoencoder of the pipeline.
    """

    guidance: Literal["cfg", "embedded", "none"]
    pipeline: Any
    vae: Any

    def __init__(
        self,
        denoiser: nn.Module,
        text: Mapping[str, nn.Module],
        process: NoiseProcess,
        layers: LayerMap,
        resolution: int,
        latent_shape: tuple[int, int, int],
        offload: bool = False,
    ):
        self.denoiser = denoiser.requires_grad_(False).eval()
        self.text = nn.ModuleDict(dict(text)).requires_grad_(False).eval()
        self.process, self.layers, self.resolution, self.latent_shape = process, layers, resolution, latent_shape
        self.offload = offload
        weight = next(denoiser.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._prompts = PromptCache()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents [n, c, h, w] of unit scale for images [n, 3, H, W] in [-1, 1]."""
        with self.present(self.vae):
            return autoencoder.encode(self.vae, images.to(self.device))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n, 3, H, W] in [0, 1] for latents of unit scale, with gradients."""
        with self.present(self.vae, stay=latents.requires_grad):
            return autoencoder.decode(self.vae, latents)

    def unconditional(self, n: int) -> Conditioning:
        """Return n rows of the empty prompt, for classifier-free guidance."""
        return self.encode_prompts([""]).take([0] * n)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return one vector per text [n, width], as the text encoders pool it: the second tensor of a conditioning."""
        return self.encode_prompts(texts).tensors[1]

    def with_crops(self, conditioning: Conditioning, crops: Tensor) -> Conditioning:
        """Return the conditioning with crop positions, for models that are conditioned on them.

        Args:
            conditioning: Rows of n prompts.
            crops: [n, 6]: height and width of the original image, top and left of the crop in the resized image, and
                height and width of the crop, in pixels.
        """
        return conditioning

    @abstractmethod
    def predict(
        self,
        xt: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        own: Sequence[Conditioning] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Return the prediction of the denoiser [n, c, h, w] in fp32.

        Args:
            xt: Noisy latents [n, c, h, w] of variance 1.
            t: Noise levels [n], or one for all rows.
            conditioning: n rows.
            own: n rows for each attached adapter, which this adapter uses instead in layers that read the prompt.
            guidance: Guidance scale, for models whose guidance is embedded.
        """

    @abstractmethod
    def sampler(self, steps: int, kind: str = "model") -> Sampler:
        """Return a new run of the model's scheduler, or of another one (`Sampler`).

        Raises:
            UserError: If the scheduler draws random numbers.
        """

    @abstractmethod
    def recomputed_blocks(self) -> list[nn.Module]:
        """Return the modules whose activations gradient checkpointing recomputes."""

    def learned_tokens(self, tokens: Tokens) -> AbstractContextManager[None]:
        """Replace triggers in prompts by learned embeddings within the block.

        Args:
            tokens: Embeddings [vectors, width] by trigger and text encoder. Those that require gradients get them from
                prompts that are encoded with `grad`.

        Raises:
            UserError: If an embedding has another width than its text encoder.
        """
        return learned_tokens(self.pipeline, tokens)

    def word_embeddings(self, text: str) -> dict[str, Tensor]:
        """Return the input embeddings of a text's tokens by text encoder, [tokens, width] in fp32."""
        return word_embeddings(self.pipeline, text)

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Conditioning:
        """Run the text encoders on prompts, in one batch."""

    def encode_prompts(
        self, prompts: Sequence[str], adapters: Sequence[Adapter] = (), grad: bool = False
    ) -> Conditioning:
        """Return one row per prompt.

        Without gradients, every prompt is encoded in a batch of its own, so that its row does not depend on other
        prompts, and the most recent rows are cached.

        Args:
            prompts: Prompts; equal ones are encoded once.
            adapters: LoRAs whose parts for the text encoders apply, each at scale 1.
            grad: Keep the graph to the weights of attached adapters.
        """
        if adapters:
            with self.attach_text(adapters):
                return self.encode_prompts(prompts, grad=grad)
        if grad:
            distinct = list(dict.fromkeys(prompts))
            return self._encode(distinct).take([distinct.index(prompt) for prompt in prompts])
        return self._prompts.rows(prompts, self._encode_each)

    @torch.no_grad()
    def _encode_each(self, prompts: Sequence[str]) -> dict[str, Conditioning]:
        with self.present(*self.text.values()):
            return {prompt: self._encode([prompt]) for prompt in prompts}

    def initial_noise(self, seeds: Sequence[int]) -> Tensor:
        """Return noise [n, c, h, w] of variance 1. Each row depends only on its seed, not on batch or device."""
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.cat([torch.randn(1, *self.latent_shape, generator=draw) for draw in draws]).to(self.device)

    def attach(
        self, adapters: Sequence[Adapter], masks: AllMasks | None = None, dtype: torch.dtype | None = None
    ) -> Adapters:
        """Put adapters on the denoiser, until the returned context manager exits.

        Args:
            adapters: Adapters; their parts for the text encoders are ignored.
            masks: Masks by layer, one per adapter.
            dtype: Type of the factors, if it is not that of the denoiser.

        Raises:
            UserError: If an adapter does not fit the denoiser.
        """
        return attach(self.denoiser, adapters, masks, dtype)

    def changed(self, backbone: Adapter | None) -> AbstractContextManager[None]:
        """Change the base weights of the denoiser within the block, for all rows of all predictions.

        Args:
            backbone: Update on which adapters were trained; None changes nothing.

        Raises:
            UserError: If it does not fit the denoiser.
        """
        return changed_weights(self.denoiser, backbone)

    @contextmanager
    def attach_text(
        self,
        adapters: Sequence[Adapter],
        scales: Mapping[str, Sequence[float]] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Adapters]:
        """Put the text parts of adapters on the text encoders while prompts are encoded in the block.

        Triggers are replaced by learned embeddings; the second of two equal triggers is renamed.

        Args:
            adapters: Adapters with factors for text encoders or learned tokens; others change nothing.
            scales: Scale of each adapter by layer; 1 if not given. Learned tokens have no scale.
            dtype: Type of the factors, if it is not that of the text encoders.

        Raises:
            UserError: If a part does not fit the text encoders.
        """
        parts, tokens = [Adapter(lora.text) for lora in adapters], joined([lora.tokens for lora in adapters])
        with ExitStack() as stack:
            if any(parts) or tokens:
                stack.enter_context(self.fresh_prompts())
            if tokens:
                stack.enter_context(self.learned_tokens(tokens))
            attached = stack.enter_context(attach(self.text, parts, dtype=dtype))
            if scales is not None:
                attached.rows({name: torch.tensor([scales[name]]) for name in attached.layers})
            yield attached

    def fresh_prompts(self) -> AbstractContextManager[None]:
        """Use an empty prompt cache within the block, because the text encoders have changed."""
        return self._prompts.emptied()

    @contextmanager
    def present(self, *modules: nn.Module, stay: bool = False) -> Iterator[None]:
        """Keep modules on the model's device within the block. With `offload`, they are on the CPU otherwise.

        Args:
            modules: Text encoders or autoencoder.
            stay: Do not move them back, because a backward pass will need their weights.
        """
        for module in modules if self.offload else ():
            module.to(self.device)
        yield
        for module in modules if self.offload and not stay else ():
            module.to("cpu")
