"""Load scorers: a description and its weights become a network that scores images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.files import MICRO_SCORERS, folder_scorers
from lorabench.scoring.networks import build_network
from lorabench.scoring.preprocess import Preprocess
from lorabench.scoring.scorer import Scorer
from lorabench.scoring.weights import check_fit, load_strict, read_safetensors, read_shapes


def load_scorer(files: ScorerFiles, device: str = "cpu") -> Scorer:
    """Build a scorer from its description and load its weights strictly, in float32 on `device`."""
    config = read_config(files.config)
    tensors = read_safetensors(files.weights)
    scorer = build_scorer(config, files)
    load_strict(scorer.network, tensors, config, files.weights)
    return scorer.to(device)


def load_scorers(root: Path | str = MICRO_SCORERS, device: str = "cpu") -> list[Scorer]:
    """Load the scorers in the subfolders of a folder, sorted by kind and name; default: the micro scorers."""
    return [load_scorer(files, device) for files in folder_scorers(root)[0]]


def build_scorer(config: Mapping[str, Any], files: ScorerFiles) -> Scorer:
    """Build the scorer of a description with uninitialized weights."""
    name, kind, architecture = config["name"], config["kind"], config["architecture"]
    try:
        preprocess = Preprocess(**config["preprocess"])
    except TypeError as error:
        raise UserError(
            f"{files.config}: preprocess is wrong ({error}); see lorabench/scoring/description.py"
        ) from error
    network, version = build_network(config), fingerprint(*files.contents())
    if kind == "dino":
        from lorabench.scoring.dino import Dino

        return Dino(name, version, network, preprocess)
    if kind == "clip":
        from lorabench.scoring.clip import Clip, build_tokenizer

        return Clip(name, version, network, preprocess, build_tokenizer(architecture, files.config.parent))
    if kind == "factors":
        from lorabench.scoring.factor_network import Factors

        return Factors(name, version, network, preprocess)
    from lorabench.scoring.csd import CSD

    return CSD(name, version, network, preprocess)


def check_scorer(files: ScorerFiles) -> None:
    """Compare names and shapes in the header of the weights with the network, without reading any weight.

    Raises:
        UserError: If they differ.
    """
    config = read_config(files.config)
    check_fit(build_network(config), read_shapes(files.weights), config, files.weights)


def fingerprint(*files: Path) -> str:
    """Return the first 8 hex digits of a hash of the files' contents."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:8]
