"""From a folder to a scorer: config.json (name, kind, architecture, preprocess, weights) and the weights it names.

    {"name": "dino@vits16", "kind": "dino",
     "architecture": {"model": "vit_small_patch16_224.dino"},
     "preprocess": {"resize": 256, "crop": 224, "interpolation": "bicubic", "mean": [...], "std": [...]},
     "weights": "model.safetensors"}

The packaged micro scorers are such folders, so real backbones differ by their config alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lorabench.errors import UserError
from lorabench.metrics.preprocess import Preprocess
from lorabench.metrics.scorer import Scorer

KINDS = ("dino", "clip", "csd")
MICRO_SCORERS = Path(__file__).parent.parent / "assets" / "micro_scorers"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a scorer's folder; UserError when it is missing, broken or incomplete."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is no scorer: it has no config.json; name a folder with config.json and weights")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no valid JSON ({error}); correct it") from error
    missing = [key for key in ("name", "kind", "architecture", "preprocess", "weights") if key not in config]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; see lorabench/metrics/load.py for its form")
    if config["kind"] not in KINDS:
        raise UserError(f"{path}: kind '{config['kind']}' is unknown; use one of {', '.join(KINDS)}")
    return config


def load_scorer(folder: Path | str, device: str = "cpu") -> Scorer:
    """The scorer of a folder, strictly loaded, in float32 on `device`."""
    from lorabench.metrics.weights import load_strict, read_safetensors

    folder = Path(folder)
    config = read_config(folder)
    weights = folder / config["weights"]
    tensors = read_safetensors(weights)
    name, kind, architecture = config["name"], config["kind"], config["architecture"]
    version = fingerprint(folder / "config.json", weights)
    try:
        preprocess = Preprocess(**config["preprocess"])
    except TypeError as error:
        raise UserError(
            f"{folder / 'config.json'}: preprocess is wrong ({error}); see lorabench/metrics/load.py"
        ) from error
    scorer: Scorer
    if kind == "dino":
        from lorabench.metrics.dino import Dino, build_dino

        scorer = Dino(name, version, build_dino(architecture), preprocess)
    elif kind == "clip":
        from lorabench.metrics.clip import Clip, build_clip, build_tokenizer

        tokenizer = build_tokenizer(architecture, folder)
        scorer = Clip(name, version, build_clip(architecture), preprocess, tokenizer)
    else:
        from lorabench.metrics.csd import CSD, build_csd

        scorer = CSD(name, version, build_csd(architecture), preprocess)
    load_strict(scorer.network, tensors, weights)
    return scorer.to(device)


def load_scorers(root: Path | str = MICRO_SCORERS, device: str = "cpu") -> list[Scorer]:
    """The scorers of a folder with dino/, clip/ and csd/ in it; the packaged micro ones by default."""
    return [load_scorer(Path(root) / kind, device) for kind in KINDS]


def fingerprint(*files: Path) -> str:
    """The first 8 hex digits of a hash of the files' contents."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:8]
