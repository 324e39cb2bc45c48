"""Train the network that reads the world's factors: `python -m pretraining factors` (lorabench/scoring/factors.py).

Examples are images of the bank from 136,000 on and, since the bank has no unseen family and many photographs, as many
drawings in all families. They show no held-out or development subject or style. Half are blurred and half have grain,
as generated images have. Drawings are rendered once and kept in the work folder; a training that was interrupted
resumes at its last epoch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.scoring import factors
from lorabench.scoring.description import FACTORS
from lorabench.scoring.factor_network import FactorNetwork, build_factors
from lorabench.scoring.factors import FAMILIES, LABELS, NUMBERS
from lorabench.scoring.files import MICRO_SCORERS, TRUTH
from pretraining import bank
from pretraining.scorer_batches import degrade
from pretraining.scorer_models import PREPROCESS, half

BLOCK = bank.SHARD  # examples
OF_BANK, DRAWN = 8, 4  # blocks from the bank, and of drawings in all families
EPOCHS, BATCH, PEAK_LR, WARMUP = 10, 128, 2e-3, 200
SHIFT = 2  # pixels by which examples are moved at most
ARCHITECTURE = {"stem": 32, "widths": [64, 96, 144], "hidden": 224}
KINDS = (*mw.FAMILIES, *mw.UNSEEN_FAMILIES)  # families of drawings in turn; the bank lacks the unseen ones
Thing = tuple[mw.Subject, mw.Style | None, mw.Pose]


def example(number: int) -> Thing:
    """Return the factors of an example."""
    if number < OF_BANK * BLOCK:
        return bank.factors_of(bank.DEVELOPMENT_FROM + number)[:3]
    i = number - OF_BANK * BLOCK
    rng = np.random.default_rng(seed_of("factor reader", mw.VERSION, i))
    subject, pose = mw.sample_subject(rng, development=True), mw.sample_pose(rng)
    return subject, mw.sample_style(rng, KINDS[i % len(KINDS)], development=True), pose


def images(block: int, work: Path) -> np.ndarray:
    """Return the examples of a block, uint8 [BLOCK, 64, 64, 3], from the work folder if they exist."""
    if block < OF_BANK:
        shard = bank.DEVELOPMENT_FROM // BLOCK + block
        bank.render_shard(work / "bank", shard)
        return np.load(work / "bank" / f"{shard:04d}.npy", mmap_mode="r")
    path = work / "factors" / f"{block}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rendered = np.stack([mw.render(*example(block * BLOCK + k)) for k in range(BLOCK)])
        with path.with_suffix(".tmp").open("wb") as file:
            np.save(file, rendered)
        path.with_suffix(".tmp").rename(path)
    return np.load(path, mmap_mode="r")


def targets(things: Sequence[Thing]) -> dict[str, Tensor]:
    """Return labels [n] of factors in LABELS (-1: not present) and values [n, k] of numbers (NaN: not present)."""
    rows: dict[str, list] = {name: [] for name in (*LABELS, *NUMBERS)}
    for subject, style, pose in things:
        rows["class"].append(mw.CLASSES.index(subject.cls))
        rows["mark"].append(LABELS["mark"].index(subject.mark))
        rows["color"].append(LABELS["color"].index(subject.body.name))
        rows["scene"].append(-1 if style else mw.SCENES.index(pose.scene))
        rows["family"].append(FAMILIES.index(style.family if style else FAMILIES[-1]))
        unknown = {name: [math.nan] * NUMBERS[name] for name in factors.STYLE}
        for name, value in (
            factors.subject_values(subject) | (factors.style_values(style) if style else unknown)
        ).items():
            rows[name].append(value)
    return {name: torch.tensor(row, dtype=None if name in LABELS else torch.float32) for name, row in rows.items()}


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


def degraded(pictures: np.ndarray, seed: int = 0) -> np.ndarray:
    """Blur half of some images and add grain to half of them; uint8 [n, 64, 64, 3]."""
    pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    pixels = degrade(pixels, np.random.default_rng(seed)) * 0.25 + 0.5
    return (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def shifted(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Return images [n, 3, s, s] moved by the same random number of pixels; borders are repeated."""
    x, y = (int(each) for each in rng.integers(0, 2 * SHIFT + 1, 2))
    size = pixels.shape[-1]
    return F.pad(pixels, [SHIFT] * 4, mode="replicate")[..., y : y + size, x : x + size]


def train(
    pictures: Sequence[np.ndarray], wanted: dict[str, Tensor], checkpoint: Path, epochs: int = EPOCHS,
    report: Callable[[str], None] = print,
) -> FactorNetwork:  # fmt: skip
    """Train a network. The rate rises for WARMUP steps and then falls linearly to zero.

    Args:
        pictures: Blocks of images.
        wanted: Targets by name, of all images.
        checkpoint: File from which an interrupted training resumes.
        epochs: Passes over the images.
        report: Called with a line after each epoch.
    """
    torch.manual_seed(seed_of("factor network") % 2**31)
    network = build_factors(ARCHITECTURE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_LR, weight_decay=0.05)
    block, count = len(pictures[0]), sum(len(each) for each in pictures)
    steps, start = epochs * (count // BATCH), 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["epoch"]
    network.train()
    for epoch in range(start, epochs):
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
            value = loss(factors.split(outputs.float()), {name: wanted[name][rows] for name in wanted})
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item()
        report(f"factors: epoch {epoch + 1} of {epochs}, loss {total / len(order):.3f}")
        partial = checkpoint.with_suffix(".tmp")
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(state, partial)
        partial.rename(checkpoint)
    return network.eval()


def train_factors(work: Path, root: Path = MICRO_SCORERS, epochs: int = EPOCHS) -> dict:
    """Write the network and its errors into the folder of the scorers; return the errors."""
    from pretraining.evaluate_factors import evaluate_factors

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
