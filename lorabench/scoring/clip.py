"""CLIP (arXiv 2103.00020) by open_clip: image against image (CLIP-I, in both roles) and image against text (CLIP-T)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from lorabench.base import UserError
from lorabench.scoring.cosine import normalise
from lorabench.scoring.description import METRICS
from lorabench.scoring.preprocess import Preprocess
from lorabench.scoring.scorer import Scorer

Tokenizer = Callable[[list[str]], torch.Tensor]


def model_config(architecture: dict[str, Any]) -> dict[str, Any]:
    """open_clip's config: written out under "config", or that of a name open_clip knows under "model".

    OpenAI's weights need the "-quickgelu" names: without `pretrained` open_clip builds plain names with GELU.
    """
    if "config" in architecture:
        return architecture["config"]
    config = open_clip.get_model_config(architecture["model"])
    if config is None:
        raise UserError(f"open_clip knows no model '{architecture['model']}'; see open_clip.list_models()")
    return config


def build_clip(architecture: dict[str, Any]) -> nn.Module:
    """A two-tower CLIP of open_clip with random weights."""
    return open_clip.CLIP(**model_config(architecture))


def build_tokenizer(architecture: dict[str, Any], folder: Path) -> Tokenizer:
    """CLIP's byte-pair tokenizer -> ids [n, context]; with its own merges where the architecture names a file."""
    length = model_config(architecture)["text_cfg"]["context_length"]
    merges = architecture.get("merges")
    if merges is None:
        return open_clip.SimpleTokenizer(context_length=length)
    if not (folder / merges).is_file():
        raise UserError(f"tokenizer not found: {folder / merges}; put the scorer's merges there")
    return open_clip.SimpleTokenizer(bpe_path=str(folder / merges), context_length=length)


class Clip(Scorer):
    """The image embedding serves both roles; which one a paper's CLIP-I column means is the protocol's matter."""

    metric = "clip_i"
    text_metric = "clip_t"
    roles = ("content", "style")
    metrics = METRICS["clip"]

    network: open_clip.CLIP

    def __init__(
        self, name: str, version: str, network: nn.Module, preprocess: Preprocess, tokenizer: Tokenizer
    ) -> None:
        super().__init__(name, version, network, preprocess)
        self.tokenizer = tokenizer

    def features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        image = self.network.encode_image(pixels)
        return {"content": image, "style": image}

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit rows [n, d] of the texts, float32 on the CPU, in the space of the image embeddings."""
        device = next(self.parameters()).device
        tokens = self.tokenizer(list(texts)).to(device)
        return normalise(self.network.encode_text(tokens)).cpu()
