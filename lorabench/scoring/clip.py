"""CLIP (arXiv 2103.00020) from open_clip: similarity of two images (CLIP-I) and of image and text (CLIP-T)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from lorabench.base import UserError
from lorabench.scoring.cosine import normalize
from lorabench.scoring.description import METRICS
from lorabench.scoring.preprocess import Preprocess
from lorabench.scoring.scorer import Scorer

Tokenizer = Callable[[list[str]], torch.Tensor]


def model_config(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return open_clip's model config: the value of "config", or open_clip's config for the name in "model".

    OpenAI's weights need the names with "-quickgelu": without `pretrained`, open_clip builds the plain names with GELU.
    """
    if "config" in architecture:
        return architecture["config"]
    config = open_clip.get_model_config(architecture["model"])
    if config is None:
        raise UserError(
            f"architecture.model={architecture['model']} must be a model of open_clip; see open_clip.list_models()"
        )
    return config


def build_clip(architecture: dict[str, Any]) -> nn.Module:
    """Build a CLIP of open_clip with random weights."""
    return open_clip.CLIP(**model_config(architecture))


def build_tokenizer(architecture: dict[str, Any], folder: Path) -> Tokenizer:
    """Build CLIP's byte-pair tokenizer, texts -> ids [n, context]; the architecture may name its own merges file."""
    length = model_config(architecture)["text_cfg"]["context_length"]
    merges = architecture.get("merges")
    if merges is None:
        return open_clip.SimpleTokenizer(context_length=length)
    if not (folder / merges).is_file():
        raise UserError(f"tokenizer not found: {folder / merges}; add the merges file of the scorer")
    return open_clip.SimpleTokenizer(bpe_path=str(folder / merges), context_length=length)


class Clip(Scorer):
    """CLIP scores; one image embedding serves both roles, because papers use CLIP-I for either."""

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
        """Embed texts as L2-normalized rows [n, d] in the space of the images, float32 on the CPU."""
        device = next(self.parameters()).device
        tokens = self.tokenizer(list(texts)).to(device)
        return normalize(self.network.encode_text(tokens)).cpu()
