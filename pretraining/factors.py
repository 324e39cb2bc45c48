"""Train the networks that read the world's factors: `python -m pretraining factors` (lorabench/scoring/factors.py).

Examples are images of the bank from 136,000 on and, since the bank has no unseen family, images of the three unseen
families. They show no held-out or development subject or style. Half are blurred and half have grain, as generated
images have. Embeddings are computed once per block and kept in the work folder.

The errors of the networks are measured on every held-out subject in 8 held-out styles and in 4 photographs.
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
from scipy.stats import spearmanr
from torch import Tensor

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.scoring import factors
from lorabench.scoring.factors import CONTENT, FAMILIES, LABELS, STYLE, FactorNetwork, FactorReader
from lorabench.scoring.files import MICRO_SCORERS, TRUTH
from lorabench.scoring.load import load_scorers
from lorabench.scoring.scorer import Scorer
from pretraining import bank
from pretraining.evaluate_scorers import PHOTO, heldout_views
from pretraining.scorer_models import degrade

BLOCK = 4000  # examples
BLOCKS = 2  # blocks from the bank; one more block has the unseen families
EPOCHS, BATCH, PEAK_LR = 20, 128, 1.5e-3
Thing = tuple[mw.Subject, mw.Style | None, mw.Pose]


def example(number: int, blocks: int = BLOCKS) -> Thing:
    """Return the factors of an example."""
    if number < blocks * BLOCK:
        return bank.factors_of(bank.DEVELOPMENT_FROM + number)[:3]
    i = number - blocks * BLOCK
    rng = np.random.default_rng(seed_of("factor reader", mw.VERSION, i))
    subject, pose = mw.sample_subject(rng, development=True), mw.sample_pose(rng)
    family = mw.UNSEEN_FAMILIES[i % len(mw.UNSEEN_FAMILIES)]
    return subject, mw.sample_style(rng, family, development=True), pose


def embedded(block: int, scorers: Sequence[Scorer], work: Path, blocks: int = BLOCKS) -> Tensor:
    """Return the concatenated embeddings [BLOCK, d] of a block of examples, from the work folder if they exist.

    Args:
        block: Number of the block.
        scorers: Micro scorers.
        work: Folder for the embeddings.
        blocks: Number of blocks from the bank; the next block has the unseen families.
    """
    path = work / "factors" / f"{block}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = []
        for start in range(0, BLOCK, 500):
            things = [example(block * BLOCK + start + k, blocks) for k in range(500)]
            images = degraded(np.stack([mw.render(*thing) for thing in things]), start)
            parts.append(factors.join({scorer.name: scorer.embed(images) for scorer in scorers}))
        np.save(path, torch.cat(parts).half().numpy())
    return torch.from_numpy(np.load(path)).float()


def degraded(images: np.ndarray, seed: int) -> np.ndarray:
    """Blur half of the images and add grain to half of them; uint8 [n, 64, 64, 3]."""
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    pixels = degrade(pixels, np.random.default_rng(seed)) * 0.25 + 0.5
    return (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def targets(things: Sequence[Thing]) -> dict[str, Tensor]:
    """Return labels [n] of factors in LABELS (-1: not present) and values [n, k] of others (NaN: not present)."""
    rows: dict[str, list] = {name: [] for name in (*CONTENT, *STYLE)}
    for subject, style, pose in things:
        rows["class"].append(mw.CLASSES.index(subject.cls))
        rows["mark"].append(LABELS["mark"].index(subject.mark))
        rows["color"].append(LABELS["color"].index(subject.body.name))
        rows["scene"].append(-1 if style else mw.SCENES.index(pose.scene))
        rows["family"].append(FAMILIES.index(style.family if style else PHOTO))
        for name, value in factors.subject_values(subject).items():
            rows[name].append(value)
        hues = (style.hue, style.hue2) if style else (math.nan, math.nan)
        for name, hue in zip(("hue", "hue2"), hues, strict=True):
            rows[name].append([math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)])
        rows["rest"].append([style.scale, style.weight, style.ground] if style else [math.nan] * 3)
    return {name: torch.tensor(row, dtype=None if name in LABELS else torch.float32) for name, row in rows.items()}


def loss(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Return the sum of cross entropies and of squared errors, relative to a uniform factor's variance."""
    terms = []
    for name, value in found.items():
        target = wanted[name]
        if name in LABELS:
            terms.append(F.cross_entropy(value, target, ignore_index=-1, reduction="sum") / len(value))
        elif (known := ~torch.isnan(target)).any():
            terms.append(value.shape[1] * F.mse_loss(value[known], target[known]) * (1 if "hue" in name else 12) / 3)
    return torch.stack(terms).sum()


def train(inputs: Tensor, wanted: dict[str, Tensor], outputs: dict[str, int], epochs: int = EPOCHS) -> FactorNetwork:
    """Train a network. The rate rises for 100 steps and then falls linearly to zero.

    Args:
        inputs: Embeddings [n, d].
        wanted: Targets by name.
        outputs: Width of each output by name.
        epochs: Passes over the inputs.
    """
    torch.manual_seed(seed_of("factor network", *outputs) % 2**31)
    network = FactorNetwork(inputs.shape[1], outputs)
    network.mean.copy_(inputs.mean(0))
    network.deviation.copy_(inputs.std(0))
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_LR, weight_decay=0.05)
    steps, step = epochs * (len(inputs) // BATCH), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs))[: len(inputs) // BATCH * BATCH].split(BATCH):
            optimizer.param_groups[0]["lr"] = PEAK_LR * min(1, (step + 1) / 100) * (1 - step / steps)
            optimizer.zero_grad()
            loss(network(inputs[rows]), {name: wanted[name][rows] for name in outputs}).backward()
            optimizer.step()
            step += 1
    return network.eval()


def errors(reader: FactorReader, scorers: Sequence[Scorer]) -> dict[str, dict[str, float]]:
    """Measure the errors of the networks on held-out subjects and styles.

    Returns:
        "drawings" and "photographs": share of correct labels, mean absolute error of other factors (hues in turns).
        "spearman": mean rank correlation of read and true distance over drawings, by subject or style; "within":
        only drawings of the same class or family.
    """
    views = heldout_views()
    read = reader.read({scorer.name: scorer.embed(views.images) for scorer in scorers})
    photo = np.array([style == PHOTO for style in views.styles])
    things = [
        (mw.subject(subject), None if style == PHOTO else mw.style(style), mw.Pose())
        for subject, style in zip(views.subjects, views.styles, strict=True)
    ]
    wanted = targets(things)
    found: dict[str, dict[str, float]] = {}
    for kind, rows in (("drawings", ~photo), ("photographs", photo)):
        found[kind] = {}
        for name, value in read.items():
            if name == "scene" or (kind == "photographs" and name in ("hue", "hue2", "rest")):
                continue  # heldout_views keeps no pose
            target = wanted[name][rows]
            if name in LABELS:
                wrong = (value[rows].argmax(1) == target).float()
            elif "hue" in name:
                angles = [torch.atan2(each[:, 1], each[:, 0]) / (2 * math.pi) for each in (value[rows], target)]
                apart = (angles[0] - angles[1]).remainder(1)
                wrong = torch.minimum(apart, 1 - apart)
            else:
                wrong = (value[rows] - target).abs()
            found[kind][name] = float(wrong.mean())
    found["spearman"] = {}
    for role, names, lookup, far, true in (
        ("content", views.subjects, mw.subject, factors.content_distances, mw.content_distance),
        ("style", views.styles, mw.style, factors.style_distances, mw.style_distance),
    ):
        drawn = [i for i in range(len(names)) if not photo[i]]
        found["spearman"][role] = rank(read, names, drawn, lookup, far, true, within=False)
        found["spearman"][f"{role} within"] = rank(read, names, drawn, lookup, far, true, within=True)
    return found


def rank(
    read: dict[str, Tensor], names: Sequence[str], drawn: Sequence[int], lookup: Callable, far: Callable,
    true: Callable, within: bool,
) -> float:  # fmt: skip
    """Return the mean over anchors of Spearman's correlation of read and true distances."""
    found = []
    for anchor in sorted({names[i] for i in drawn}):
        kind = anchor.rsplit("_", 1)[0]
        rows = [i for i in drawn if not within or names[i].rsplit("_", 1)[0] == kind]
        distances = [true(lookup(names[i]), lookup(anchor)) for i in rows]
        found.append(spearmanr(far(read, lookup(anchor))[rows].numpy(), distances).statistic)
    return float(np.nanmean(found))


def train_factors(work: Path, root: Path = MICRO_SCORERS, blocks: int = BLOCKS, epochs: int = EPOCHS) -> dict:
    """Write the networks and their errors into the folder of the scorers; return the errors."""
    torch.set_num_threads(1)
    scorers = load_scorers(root)
    inputs = torch.cat([embedded(block, scorers, work, blocks) for block in range(blocks + 1)])
    wanted = targets([example(i, blocks) for i in range(len(inputs))])
    networks = {"content": train(inputs, wanted, CONTENT, epochs), "style": train(inputs, wanted, STYLE, epochs)}
    state = {f"{role}.{name}": v.half() for role, net in networks.items() for name, v in net.state_dict().items()}
    folder = root / TRUTH
    save_file({name: value.contiguous() for name, value in state.items()}, folder / factors.FILE)
    made_for = factors.made_for(scorers)
    (folder / "factors.json").write_text(json.dumps({"made_for": made_for}) + "\n")
    found = errors(factors.load_factors(scorers, root), scorers)
    (folder / "factors.json").write_text(json.dumps({"made_for": made_for, "errors": found}, indent=1) + "\n")
    return found
