"""Train the micro scorers on the world: `python -m pretraining scorers`.

This takes about 10 minutes per scorer on one free CPU thread, in bfloat16. An interrupted training resumes at its last
multiple of 100 steps. As instruments of measurement, the scorers are trained on all 16 style families, including those
that the base model never sees. Held-out subjects and styles are new to both.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lorabench.base import seed_of
from lorabench.scoring.description import KINDS
from pretraining.checkpoint import Checkpoint
from pretraining.scorer_bank import ScorerBank, world_fingerprint
from pretraining.scorer_models import TASKS, make_config

CACHE = Path("~/.cache/lorabench/micro")
BLOCKS = 480
STEPS = {"dino": 800, "clip": 600, "csd": 500}
PEAK_LR, WARMUP, WEIGHT_DECAY = 2e-3, 40, 0.05
SAVE_EVERY = 100


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: a linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def train_scorer(
    kind: str, out: Path, steps: int, bank: ScorerBank, cache: Path, report: Callable[[str], None]
) -> Path:
    """Train one scorer and write its folder out/<kind>. An interrupted training resumes from its checkpoint.

    Args:
        kind: "dino", "clip" or "csd".
        out: Folder of the scorers.
        steps: Number of training steps.
        bank: Images.
        cache: Folder for the checkpoint.
        report: Called with lines about the progress.
    """
    from safetensors.torch import save_file

    folder = out / kind
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(kind, folder)
    torch.manual_seed(seed_of("scorer", kind) % 2**31)
    task = TASKS[kind](config, folder)
    decayed = [p for p in task.parameters() if p.ndim >= 2]
    others = [p for p in task.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    path = cache / f"scorer-{kind}-{world_fingerprint()}-{steps}.pt"
    checkpoint = Checkpoint(path, {"task": task, "optimiser": optimizer}, "step")
    start = checkpoint.restore()
    task.train()
    began = time.monotonic()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        rng = np.random.default_rng(seed_of("scorer batch", kind, step))
        batch = task.batch(bank, rng)
        parts = task.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0 or step + 1 == steps:
            pace = (time.monotonic() - began) / (step + 1 - start)
            values = " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            report(f"{kind} {step + 1}/{steps} {pace:.2f} s/step {values}")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            checkpoint.save(step + 1)
    state = {name: value.half().contiguous() for name, value in task.network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def train_scorers(
    out: Path,
    steps: dict[str, int] | None = None,
    threads: int = 1,
    kinds: Sequence[str] = KINDS,
    blocks: int = BLOCKS,
    cache: Path = CACHE,
    report: Callable[[str], None] = print,
) -> None:
    """Render the bank, train the scorers into out/<kind>, fit the readout, and write the model card's figures."""
    from pretraining.evaluate_scorers import evaluate_scorers
    from pretraining.readout import fit_readout

    torch.set_num_threads(threads)
    cache = cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    bank = ScorerBank(cache, blocks)
    bank.build(lambda done: report(f"bank {done}/{blocks} blocks") if done % 20 == 0 else None)
    for kind in kinds:
        train_scorer(kind, out, (steps or STEPS)[kind], bank, cache, report)
    fit_readout(out, bank)
    evaluate_scorers(out)
