"""The three micro scorers: their config.json and their training losses."""

from __future__ import annotations

import gzip
import json
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lorabench.data import microworld as mw
from lorabench.scoring.clip import build_clip, build_tokenizer
from lorabench.scoring.cosine import normalize
from lorabench.scoring.csd import build_csd
from lorabench.scoring.dino import build_dino
from lorabench.scoring.weights import read_safetensors
from pretraining import scorer_losses as losses
from pretraining.scorer_bank import SIZE, ScorerBank
from pretraining.scorer_batches import Batch, grid_batch

PREPROCESS = {
    "resize": SIZE, "crop": SIZE, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
}  # fmt: skip
CONTEXT = 32  # tokens of a caption
# CLIP and CSD have the residual tower of OpenAI's RN models, because with so little data only convolutions learn
# shapes: with a plain transformer, CSD learned style perfectly and no content.
CLIP_TOWER = {"layers": [1, 2, 2, 1], "width": 16}
CSD_TOWER = {"layers": [1, 2, 1, 1], "width": 16}


def half() -> torch.autocast:
    """Return a context in which the network uses bfloat16. Losses need float32, because cosines are close to one."""
    return torch.autocast("cpu", torch.bfloat16)


class ScorerTask(nn.Module):
    """A network with its batches and loss terms."""

    network: nn.Module

    @abstractmethod
    def batch(self, bank: ScorerBank, rng: np.random.Generator) -> Batch:
        """Return a random batch."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms whose sum is minimized."""


class DinoTask(ScorerTask):
    """Training of identity: a subject in other styles, poses and places, against others of its class in its style."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        super().__init__()
        self.network = build_dino(config["architecture"])
        width = cast(int, self.network.num_features)
        self.classes = nn.Linear(width, len(mw.CLASSES))
        self.factors = nn.Linear(width, 18)

    def batch(self, bank: ScorerBank, rng: np.random.Generator) -> Batch:
        return grid_batch(bank, rng, blocks=8, rows=5, styled=2, photos=1)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        with half():
            feature = self.network(batch.pixels)
        feature = feature.float()
        unit = normalize(feature)
        classes = torch.tensor([mw.CLASSES.index(s.cls) for s in batch.subjects])
        return {
            "contrast": losses.supervised_contrastive(unit, batch.subject_ids, 0.07),
            "class": 0.3 * F.cross_entropy(self.classes(feature), classes),
            "factors": 1.0 * losses.masked_mse(self.factors(feature), losses.subject_targets(batch.subjects)),
            "order": 0.5 * losses.disagreement(unit, losses.distance_matrix(batch.subjects, mw.content_distance)),
        }


class CSDTask(ScorerTask):
    """Training of style: a style on other subjects, against others of its family; and the converse for content."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        super().__init__()
        self.network = build_csd(config["architecture"])
        start_from_clip(self.network.backbone, folder.parent / "clip" / "model.safetensors")
        width = self.network.last_layer_style.shape[1]
        self.families = nn.Linear(width, len(mw.FAMILIES) + 1)
        self.style_factors, self.subject_factors = nn.Linear(width, 7), nn.Linear(width, 18)
        self.classes = nn.Linear(width, len(mw.CLASSES))

    def batch(self, bank: ScorerBank, rng: np.random.Generator) -> Batch:
        return grid_batch(bank, rng, blocks=8, rows=3, styled=4, photos=1)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        with half():
            out = self.network(batch.pixels)
        out = {role: value.float() for role, value in out.items()}
        style, content = normalize(out["style"]), normalize(out["content"])
        families = torch.tensor([mw.FAMILIES.index(s.family) if s else len(mw.FAMILIES) for s in batch.styles])
        classes = torch.tensor([mw.CLASSES.index(s.cls) for s in batch.subjects])
        return {
            "contrast": losses.supervised_contrastive(style, batch.style_ids, 0.07),
            "family": 0.3 * F.cross_entropy(self.families(out["style"]), families),
            "factors": 1.0 * losses.masked_mse(self.style_factors(out["style"]), losses.style_targets(batch.styles)),
            "order": 0.5 * losses.disagreement(style, losses.distance_matrix(batch.styles, mw.style_distance)),
            "content": 0.6 * losses.supervised_contrastive(content, batch.subject_ids, 0.1),
            "class": 0.3 * F.cross_entropy(self.classes(out["content"]), classes),
            "content_factors": 0.5
            * losses.masked_mse(self.subject_factors(out["content"]), losses.subject_targets(batch.subjects)),
        }


def start_from_clip(tower: nn.Module, weights: Path) -> None:
    """Copy the fitting weights of the trained CLIP's image tower, if it exists, as the released CSD does."""
    if weights.is_file():
        own = tower.state_dict()
        visual = {name.removeprefix("visual."): value for name, value in read_safetensors(weights).items()}
        fitting = {name: v.float() for name, v in visual.items() if name in own and own[name].shape == v.shape}
        tower.load_state_dict({**own, **fitting})


class ClipTask(ScorerTask):
    """Training of images and their captions."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        super().__init__()
        self.network = build_clip(config["architecture"])
        self.tokenizer = build_tokenizer(config["architecture"], folder)

    def batch(self, bank: ScorerBank, rng: np.random.Generator) -> Batch:
        return grid_batch(bank, rng, blocks=40, rows=1, styled=3, photos=1)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        with half():
            image, text, scale = self.network(batch.pixels, self.tokenizer(batch.texts))
        image, text = normalize(image), normalize(text)
        same = torch.tensor([[a == b for b in batch.texts] for a in batch.texts])
        return {"contrast": losses.image_text_contrastive(image, text, same, scale.clamp(max=100))}


def clip_vocabulary() -> list[tuple[str, str]]:
    """Return byte-pair merges with which each word of the world is one token, from the micro model's tokenizer."""
    from pretraining.tokens import build_tokenizer as build_micro_tokenizer

    model = json.loads(build_micro_tokenizer().backend_tokenizer.to_str())["model"]
    pairs = (merge.split() if isinstance(merge, str) else merge for merge in model["merges"])
    return [(first, second) for first, second in pairs]


def write_merges(path: Path, merges: list[tuple[str, str]]) -> int:
    """Write CLIP's merges file (a header line, then one pair per line, gzip without a date); return the token count."""
    text = "\n".join(["#version: lorabench", *(" ".join(merge) for merge in merges)])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return 2 * 256 + len(merges) + 2


def open_clip_config(vision: dict[str, Any], embed_dim: int, vocabulary: int) -> dict[str, Any]:
    """Return open_clip's configuration of a two-tower model for images of the world."""
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": SIZE, "head_width": 32, **vision},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 96, "heads": 3, "layers": 3},
    }


def make_config(kind: str, folder: Path) -> dict[str, Any]:
    """Return the config.json of a micro scorer. For CLIP, this also writes its merges into `folder`."""
    architecture: dict[str, Any]
    if kind == "dino":
        # A hierarchical transformer with a convolutional stem. A plain one of this size does not learn the twelve
        # classes at all in the first 10 000 images; this one learns them within 3 000.
        args = {
            "embed_dims": [32, 64, 128, 160], "depths": [2, 2, 3, 1], "num_heads": [1, 2, 4, 5],
            "window_sizes": [7, 8, 4, 2], "drop_path_rate": 0.0,
        }  # fmt: skip
        architecture = {"model": "tiny_vit_5m_224", "args": args}
    elif kind == "clip":
        vocabulary = write_merges(folder / "merges.txt.gz", clip_vocabulary())
        architecture = {"config": open_clip_config(CLIP_TOWER, 96, vocabulary), "merges": "merges.txt.gz"}
    else:
        architecture = {"config": open_clip_config(CSD_TOWER, 160, 8)}
    return {
        "name": f"{kind}@micro", "kind": kind, "world": mw.VERSION, "architecture": architecture,
        "preprocess": PREPROCESS, "weights": "model.safetensors",
    }  # fmt: skip


TASKS: dict[str, Callable[[dict[str, Any], Path], ScorerTask]] = {"dino": DinoTask, "clip": ClipTask, "csd": CSDTask}
