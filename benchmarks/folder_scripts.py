"""Scoring loops as in public evaluation scripts, written from their descriptions: one metric and one folder at a time.

For each folder of images and each metric, the model is built and loaded, the references are embedded and the images are
read. The result is the matrix of image x reference values, which the scripts average.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms

from lorabench.scoring.clip import build_clip, build_tokenizer
from lorabench.scoring.csd import build_csd
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.dino import build_dino

BATCH = 64


@dataclass(frozen=True)
class Folder:
    """Images of one pair by one method, their references and their prompt."""

    images: Sequence[Path]
    content: Sequence[Path]
    style: Sequence[Path]
    text: str


class FolderScripts:
    """Public evaluation scripts; `seconds` is the CPU time of loading, reading and embedding."""

    def __init__(self, files: Mapping[str, ScorerFiles]) -> None:
        self.files = files
        self.seconds: dict[str, float] = defaultdict(float)

    @torch.no_grad()
    def score(self, folder: Folder) -> dict[str, torch.Tensor]:
        """Return the four metrics of a folder, each [images, references], by the metric names of scores.parquet."""
        return {
            "dino/content": self.against("dino", folder.images, folder.content),
            "clip_i/style": self.against("clip", folder.images, folder.style),
            "clip_t": self.against_text(folder.images, folder.text),
            "csd/style": self.against("csd", folder.images, folder.style),
        }

    def against(self, kind: str, images: Sequence[Path], references: Sequence[Path]) -> torch.Tensor:
        """Return cosine similarities [images, references] by a network of a kind."""
        network = self.load(kind)
        features: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "dino": network,
            "clip": lambda pixels: network.encode_image(pixels),
            "csd": lambda pixels: network(pixels)["style"],
        }
        rows = [
            self.embed(kind, features[kind], paths, part)
            for paths, part in ((images, "images"), (references, "references"))
        ]
        return rows[0] @ rows[1].T

    def against_text(self, images: Sequence[Path], text: str) -> torch.Tensor:
        """Return cosine similarities [images, 1] of images and a text by CLIP."""
        network, config = self.load("clip"), self.config("clip")
        with self.timed("loading"):
            tokens = build_tokenizer(config["architecture"], self.files["clip"].config.parent)([text])
        seen = self.embed("clip", network.encode_image, images, "images")
        with self.timed("references, text"):
            read = unit(network.encode_text(tokens))
        return seen @ read.T

    def config(self, kind: str) -> dict[str, Any]:
        """Return the configuration of the network of a kind."""
        return read_config(self.files[kind].config)

    def load(self, kind: str) -> Any:
        """Build a randomly initialized network, as libraries do, and load its weights."""
        build = {"dino": build_dino, "clip": build_clip, "csd": build_csd}[kind]
        with self.timed("loading"):
            network: nn.Module = build(self.config(kind)["architecture"])
            network.load_state_dict(load_file(self.files[kind].weights))
        return network.eval()

    def embed(
        self, kind: str, features: Callable[[torch.Tensor], torch.Tensor], paths: Sequence[Path], part: str
    ) -> torch.Tensor:
        """Return unit features [images, width], with the time booked under `part`."""
        found = []
        for start in range(0, len(paths), BATCH):
            with self.timed("reading"):
                pixels = self.read(kind, paths[start : start + BATCH])
            with self.timed(f"{part}, {kind}"):
                found.append(unit(features(pixels)))
        return torch.cat(found)

    def read(self, kind: str, paths: Sequence[Path]) -> torch.Tensor:
        """Return preprocessed images [n, 3, h, w]."""
        known = self.config(kind)["preprocess"]
        transform = transforms.Compose([
            transforms.Resize(known["resize"], transforms.InterpolationMode(known["interpolation"])),
            transforms.CenterCrop(known["crop"]),
            transforms.ToTensor(),
            transforms.Normalize(known["mean"], known["std"]),
        ])  # fmt: skip
        pixels: list[Any] = [transform(Image.open(path).convert("RGB")) for path in paths]
        return torch.stack(pixels)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the CPU time of a block to `seconds`."""
        start = process_time()
        yield
        self.seconds[part] += process_time() - start


def unit(features: torch.Tensor) -> torch.Tensor:
    """Scale features [n, width] to unit length."""
    return features / features.norm(dim=-1, keepdim=True)
