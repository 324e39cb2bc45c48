"""Adapters on the two text encoders while a LoRA is trained: prompts are then encoded anew at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lorabench.base import seed_of
from lorabench.lora.adapter import Factors
from lorabench.lora.layer import Adapters, attach
from lorabench.models.sdxl import SDXL, TEXT_ENCODERS, Conditioning
from lorabench.personalization.initial import initial, text_layers


@contextmanager
def adapted_encoders(model: SDXL, rank: int, seed: int) -> Iterator[dict[str, Adapters]]:
    """Both text encoders on the model's device, each under a fresh adapter: {"text_encoder": ..., ...}."""
    with ExitStack() as stack:
        stack.enter_context(model.present(*model.encoders))
        adapters = {}
        for name, encoder in zip(TEXT_ENCODERS, model.encoders, strict=True):
            start = initial(text_layers(encoder), rank, seed_of(seed, name))
            adapters[name] = stack.enter_context(attach(encoder, [start], dtype=torch.float32))
        yield adapters


def factors_of(encoders: Mapping[str, Adapters], scale: float) -> dict[str, Factors]:
    """The adapters as `LoRA.text` has them, at strength `scale`."""
    trained = {name: adapters.loras()[0] for name, adapters in encoders.items()}
    return {
        f"{name}.{layer}": Factors(each.down, each.up * scale)
        for name, lora in trained.items()
        for layer, each in lora.items()
    }


def encode(model: SDXL, prompts: Sequence[str]) -> Conditioning:
    """One row a prompt, with gradients to the adapters, and not remembered."""
    distinct = list(dict.fromkeys(prompts))
    pipeline: Any = model.pipeline  # its types know of one prompt
    embeds, _, pooled, _ = pipeline.encode_prompt(distinct, device=model.device, do_classifier_free_guidance=False)
    return Conditioning(embeds, pooled).take([distinct.index(prompt) for prompt in prompts])


@contextmanager
def as_trained(model: SDXL, prompts: Sequence[str]) -> Iterator[None]:
    """The model knows these prompts and the empty one as the adapted encoders have them now, and no other."""
    with torch.no_grad():
        now = {prompt: encode(model, [prompt]) for prompt in {*prompts, ""}}
    with model.knowing(now):
        yield
