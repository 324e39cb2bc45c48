"""Measure bf16-mixed against fp32 on a CPU: seconds of sampling and of a training step, and how much images change.

    python -m benchmarks.precision

Processors without bf16 instructions are slower with it.
"""

from __future__ import annotations

from statistics import median
from time import process_time

import numpy as np
import torch

from lorabench.base import ASSETS
from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.models.sdxl.model import SDXL
from lorabench.sampling.generate import generate
from lorabench.scoring.load import load_scorers

PRECISIONS = {"32-true": False, "bf16-mixed": True}
PROMPTS = [f"a {name} in poster style" for name in ("mug", "cat", "house", "boat")]
ROUNDS = 3


def main() -> None:
    torch.set_num_threads(1)
    model, scorers = SDXL.load(ASSETS / "micro_sdxl"), load_scorers()
    spec = GenerateSpec(images=len(PROMPTS), steps=25, guidance=3.0, batch=len(PROMPTS))
    images: dict[str, np.ndarray] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for precision, reduced in PRECISIONS.items():
            trainer = TrainerSpec(accelerator="cpu", precision=precision, workers=0, threads=1)
            start = process_time()
            images[precision] = generate(model, [], PROMPTS, [1, 2, 3, 4], spec, trainer)
            seconds.setdefault(("sampling", precision), []).append(process_time() - start)
            start = process_time()
            step(model, reduced)
            seconds.setdefault(("training step", precision), []).append(process_time() - start)
    for what in ("sampling", "training step"):
        ratio = median(b / a for a, b in zip(*(seconds[what, each] for each in PRECISIONS), strict=True))
        print(f"{what}: {ratio:.2f} of the seconds of fp32")
    exact, mixed = (images[each] for each in PRECISIONS)
    print(f"images differ by {np.abs(exact.astype(float) - mixed).mean():.2f} gray levels on average")
    for scorer in scorers:
        for role, rows in scorer.embed([*exact]).items():
            cosine = torch.nn.functional.cosine_similarity(rows, scorer.embed([*mixed])[role]).min()
            print(f"{scorer.metric}/{role}: smallest cosine between an image and its counterpart {cosine:.5f}")


def step(model: SDXL, reduced: bool) -> None:
    """Run forward and backward pass of a batch of 8, with gradients to the input, as in the training of a LoRA."""
    x = torch.randn(8, *model.initial_noise([0]).shape[1:], requires_grad=True)
    prompt = model.encode_prompts(["a mug"] * 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        model.predict(x, torch.full((8,), 500), prompt).square().mean().backward()


if __name__ == "__main__":
    main()
