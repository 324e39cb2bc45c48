"""Tiny random scorers for tests, each in its own folder."""

import json
from dataclasses import asdict

import numpy as np
import torch
from safetensors.torch import save_file

from lorabench.scoring.load import load_scorers
from lorabench.scoring.preprocess import Preprocess

MICRO = Preprocess(8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TOWER = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
ARCHITECTURES = {
    "dino": {
        "model": "vit_tiny_patch16_224",
        "args": {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    },
    "clip": {"config": TOWER},
    "csd": {"config": TOWER},
}


def write_scorer(folder, kind):
    """Write a folder with a tiny random scorer."""
    from lorabench.scoring.clip import build_clip
    from lorabench.scoring.csd import build_csd
    from lorabench.scoring.dino import build_dino

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    network = {"dino": build_dino, "clip": build_clip, "csd": build_csd}[kind](ARCHITECTURES[kind])
    preprocess = {**asdict(MICRO), "resize": 16, "crop": 16}
    config = {
        "name": f"{kind}@test",
        "kind": kind,
        "architecture": ARCHITECTURES[kind],
        "preprocess": preprocess,
        "weights": "w.safetensors",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, folder / "w.safetensors")
    return folder


def load_tiny(root):
    """Return scorers of all kinds, written below a folder."""
    for kind in ("dino", "clip", "csd"):
        write_scorer(root / kind, kind)
    return load_scorers(root)


def pictures(n, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
