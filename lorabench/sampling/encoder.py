"""The expert encoder of CRAFT-LoRA (arXiv 2602.18936, appendix B): adapter scales from the words that are marked.

    h = head([f_id(concepts) | f_c(E("sks dog")) | f_s(E("szn style"))]),   gamma = m * softplus(h) / softplus(0)

f_id, f_c and f_s are MLPs to 64 dimensions, E is the pooled text embedding of the marked words (zeros if none); m is
1 where a role is marked. gamma is cut at 1 when it is used. The last layer starts at zero, so an untrained encoder
gives gamma = m exactly, which is routing by markers. The paper gives the three branches, their width, and "non-negative
scales", but no training of the encoder; lorabench/personalization/routing.py has two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lorabench.data.concepts import ROLES
from lorabench.data.scenes import Scene
from lorabench.sampling.routing import marker_scales

if TYPE_CHECKING:
    from lorabench.models.model import DiffusionModel

WIDTH = 64
FILE = "encoder.safetensors"


class ExpertEncoder(nn.Module):
    """Scales of content and style from three embeddings.

    Args:
        text_width: Width of the pooled text embedding.
        concepts: Number of concept identities: contents and styles that the encoder knows.
    """

    def __init__(self, text_width: int, concepts: int = 2):
        super().__init__()
        self.identities = nn.Embedding(concepts, WIDTH)
        self.f_id = mlp(WIDTH, 2 * WIDTH)
        self.f_c, self.f_s = mlp(text_width, 4 * WIDTH), mlp(text_width, 4 * WIDTH)
        self.head = nn.Sequential(nn.Linear(3 * WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, len(ROLES)))
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, words: Tensor, marked: Tensor) -> Tensor:
        """Return gamma [n, 2] for text embeddings [n, 2, width] and marks [n, 2] of content and style."""
        identity = (marked @ self.identities.weight[: len(ROLES)]) / marked.sum(1, keepdim=True).clamp(min=1)
        words = words * marked[..., None]
        h = self.head(torch.cat([self.f_id(identity), self.f_c(words[:, 0]), self.f_s(words[:, 1])], dim=1))
        return marked * softplus(h) / softplus(torch.zeros_like(h))

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}, folder / FILE
        )

    @classmethod
    def load(cls, folder: Path) -> ExpertEncoder:
        from safetensors.torch import load_file

        state = load_file(folder / FILE)
        encoder = cls(state["f_c.0.weight"].shape[1], len(state["identities.weight"]))
        encoder.load_state_dict(state)
        return encoder.requires_grad_(False)


def mlp(inputs: int, hidden: int) -> nn.Sequential:
    """Return a network of two layers."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, WIDTH))


def embedded(model: DiffusionModel, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return the text embeddings [n, 2, width] of the marked words, and the marks [n, 2], on the CPU."""
    texts = [scene.marked(role) for scene in scenes for role in ROLES]
    words = model.text_features(texts).float().cpu().unflatten(0, (len(scenes), len(ROLES)))
    return words, marker_scales(scenes, ROLES)


def encoder_scales(encoder: ExpertEncoder, model: DiffusionModel, scenes: Sequence[Scene], roles: Sequence) -> Tensor:
    """Return gamma of each adapter by prompt, [prompts, adapters]; adapters of one role share theirs."""
    gamma = encoder(*embedded(model, scenes)).clamp(max=1)
    return gamma[:, [ROLES.index(role) for role in roles]]
