"""Train the network that reads the world's factors: `python -m pretraining factors` (lorabench/scoring/factors.py).

Half of the examples (factor_examples.py) are blurred and half have grain, as generated images have. A training that was
interrupted resumes at its last epoch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.scoring.description import FACTORS
from lorabench.scoring.factor_network import FactorNetwork, build_factors
from lorabench.scoring.factors import LABELS, split
from lorabench.scoring.files import MICRO_SCORERS, TRUTH
from pretraining.checkpoint import Checkpoint
from pretraining.evaluate_factors import evaluate_factors
from pretraining.factor_examples import BLOCK, DRAWN, OF_BANK, example, images, targets
from pretraining.scorer_batches import degrade
from pretraining.scorer_models import PREPROCESS, half

EPOCHS, BATCH, PEAK_LR, WARMUP = 5, 128, 2e-3, 200
SHIFT = 2  # pixels by which examples are moved at most
ARCHITECTURE = {"stem": 32, "widths": [64, 96, 144], "hidden": 224}


def loss(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Return the sum of cross entropies, of squared errors relative to a uniform factor's variance, and of the negative
    log likelihood of the errors, which trains the variances alone.
    """
    terms = []
    for name, value in found.items():
        target = wanted[name]
        if name in LABELS:
            terms.append(F.cross_entropy(value, target, ignore_index=-1, reduction="sum") / len(value))
            continue
        mean, spread = value.chunk(2, dim=1)
        known = ~torch.isnan(target)
        error = torch.where(known, mean - target, 0).square().sum() / len(value)
        likely = F.gaussian_nll_loss(
            mean.detach()[known], target[known], spread[known].exp(), eps=1e-4, reduction="sum"
        )
        terms += [error * (1 if "hue" in name else 12) / 3, 0.1 * likely / len(value)]
    return torch.stack(terms).sum()


def shifted(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Return images [n, 3, s, s] moved by the same random number of pixels; borders are repeated."""
    x, y = (int(each) for each in rng.integers(0, 2 * SHIFT + 1, 2))
    size = pixels.shape[-1]
    return F.pad(pixels, [SHIFT] * 4, mode="replicate")[..., y : y + size, x : x + size]


def train(
    pictures: Sequence[np.ndarray], wanted: dict[str, Tensor], path: Path, epochs: int = EPOCHS,
    report: Callable[[str], None] = print,
) -> FactorNetwork:  # fmt: skip
    """Train a network. The rate rises for WARMUP steps and then falls linearly to zero.

    Args:
        pictures: Blocks of images.
        wanted: Targets by name, of all images.
        path: File from which an interrupted training resumes.
        epochs: Passes over the images.
        report: Called with a line after each epoch.
    """
    torch.manual_seed(seed_of("factor network") % 2**31)
    network = build_factors(ARCHITECTURE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_LR, weight_decay=0.05)
    block, count = len(pictures[0]), sum(len(each) for each in pictures)
    steps = epochs * (count // BATCH)
    checkpoint = Checkpoint(path, {"network": network, "optimizer": optimizer}, "epoch")
    network.train()
    for epoch in range(checkpoint.restore(), epochs):
        torch.manual_seed(seed_of("factor network", epoch) % 2**31)
        rng = np.random.default_rng(seed_of("factor batches", epoch))
        order, total = rng.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH), 0.0
        for number, rows in enumerate(order):
            step = epoch * len(order) + number
            optimizer.param_groups[0]["lr"] = PEAK_LR * min(1, (step + 1) / WARMUP) * (1 - step / steps)
            some = np.stack([pictures[i // block][i % block] for i in rows])
            pixels = degrade((torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25, rng)
            with half():
                outputs = network(shifted(pixels, rng).contiguous(memory_format=torch.channels_last))
            value = loss(split(outputs.float()), {name: wanted[name][rows] for name in wanted})
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item()
        report(f"factors: epoch {epoch + 1} of {epochs}, loss {total / len(order):.3f}")
        checkpoint.save(epoch + 1)
    return network.eval()


def train_factors(work: Path, root: Path = MICRO_SCORERS, epochs: int = EPOCHS) -> dict:
    """Write the network and its errors into the folder of the scorers; return the errors."""
    torch.set_num_threads(1)
    pictures = [images(block, work) for block in range(OF_BANK + DRAWN)]
    wanted = targets([example(i) for i in range(len(pictures) * BLOCK)])
    network = train(pictures, wanted, work / "factors" / f"training-{epochs}.pt", epochs)
    folder = root / TRUTH / FACTORS
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: v.half().contiguous() for name, v in network.state_dict().items()}, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    config = {
        "name": f"{FACTORS}@micro", "kind": FACTORS, "world": mw.VERSION, "architecture": ARCHITECTURE,
        "preprocess": PREPROCESS, "weights": "model.safetensors",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return evaluate_factors(root)
