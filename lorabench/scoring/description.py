"""The description of a scorer, config.json: its name, kind, architecture, preprocessing and weights.

    {"name": "dino@vits16", "kind": "dino",
     "architecture": {"model": "vit_small_patch16_224.dino"},
     "preprocess": {"resize": 256, "crop": 224, "interpolation": "bicubic", "mean": [...], "std": [...]},
     "weights": "model.safetensors"}

`weights` is a file next to config.json, or {hub, file, sha256} for a published backbone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.base import UserError

FACTORS = "factors"  # kind of the network that reads the microworld's factors; name of its outputs in place of a role

# Metrics by kind of scorer, as they are named in the scores.
METRICS = {
    "dino": ("dino/content", "dino/style"),
    "clip": ("clip_i/content", "clip_i/style", "clip_t", "clip_t/prompt"),
    "csd": ("csd/content", "csd/style"),
    FACTORS: ("truth/content", "truth/style"),
}
KINDS = tuple(kind for kind in METRICS if kind != FACTORS)  # kinds of scorers


@dataclass(frozen=True)
class ScorerFiles:
    """A scorer's description, and its weights as safetensors in a layout that layouts.py supports."""

    config: Path
    weights: Path

    @staticmethod
    def of(folder: Path) -> ScorerFiles:
        """Return the scorer of a folder with config.json and the weights that it names."""
        config = folder / "config.json"
        return ScorerFiles(config, folder / read_config(config)["weights"])

    def contents(self) -> list[Path]:
        """Return every file that scores depend on: description, weights and, for CLIP, the tokenizer's merges."""
        merges = read_config(self.config)["architecture"].get("merges")
        return [self.config, self.weights, *([self.config.parent / merges] if merges else [])]


def read_config(path: Path) -> dict[str, Any]:
    """Return the description of a scorer.

    Raises:
        UserError: If it is missing, not valid JSON or incomplete.
    """
    if not path.is_file():
        raise UserError(
            f"{path.parent} is not a scorer: it has no {path.name}; use a folder with this file and weights"
        )
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); correct it") from error
    needed = ("name", "kind", "architecture", "preprocess", "weights")
    missing = [key for key in needed if not isinstance(config, dict) or key not in config]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}; see lorabench/scoring/description.py for its format")
    if config["kind"] not in METRICS:
        raise UserError(f"{path}: kind '{config['kind']}' is unknown; use one of {', '.join(KINDS)}")
    return config
