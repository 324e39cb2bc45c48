"""Merges of several pairs side by side in one batch against one at a time; see README.md.

python -m benchmarks.merge_batch
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from typing import Any

import torch

from benchmarks.measure import interleaved, markdown, publish, ratio, seconds
from benchmarks.sizes import RANKS, build, plain_pair, random_lora
from lorabench.config.schemas import TrainerSpec
from lorabench.merging.merge import MergeItem, MergeResult, merge_pairs
from lorabench.merging.method import load

BATCHES = (1, 2, 4, 8)
# Sums over rows are taken in another order, and Adam makes a step of full length from a gradient of any size, so that
# the rounding of a gradient near zero shows in its mask: the updates are compared as a whole.
TOLERANCE = 1e-3
TRAINER = TrainerSpec(accelerator="auto", precision="32-true", workers=0, threads=1)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    model = build("micro", options.device, torch.float32)
    items = [item(model, str(number)) for number in range(max(BATCHES))]
    facts: dict[str, Any] = {"device": options.device, "steps": options.steps, "repeats": options.repeats}
    facts |= {"rank": RANKS["micro"], "adapted layers": len(items[0].loras[0]), "torch": torch.__version__}
    lines = [", ".join(f"{key} {value}" for key, value in facts.items())]
    for name in options.methods:
        fit = {**vars(load(name).fit), "steps": options.steps}  # pyright: ignore[reportArgumentType]
        method = load(name, fit=fit)
        farthest = difference(model, method, items)
        if farthest > TOLERANCE:
            sys.exit(
                f"{name}: merges in a batch differ by {farthest:.1e} from those alone; the tolerance is {TOLERANCE}"
            )

        def timed(count: int, method: Any = method) -> Any:
            return lambda _: (
                seconds(lambda: merge_pairs(model, method, items[:count], 0, TRAINER), model.device) / count
            )

        times = interleaved({str(count): timed(count) for count in BATCHES}, options.repeats)
        rows = [
            [str(count), f"{60 / median(times[str(count)]):.1f}", f"{ratio(times['1'], times[str(count)]):.2f}"]
            for count in BATCHES
        ]
        lines += [
            f"{name}: largest relative difference from one at a time {farthest:.0e}, tolerance {TOLERANCE:g}",
            markdown(["pairs a batch", "pairs a minute", "x one at a time"], rows),
        ]
        facts[name] = {"seconds a pair": times, "difference": farthest}
    publish("\n\n".join(lines) + "\n", facts, options)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["ziplora", "duolora"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10, help="of each merge")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU")
    parser.add_argument("--out", help="write the markdown there, too")
    parser.add_argument("--json", help="write all numbers there")
    return parser.parse_args(arguments)


def item(model: Any, name: str) -> MergeItem:
    """A pair with LoRAs of its own."""
    loras = tuple(random_lora(model, RANKS["micro"], f"{role} {name}") for role in ("content", "style"))
    return MergeItem(loras, plain_pair(name))


def difference(model: Any, method: Any, items: list[MergeItem]) -> float:
    """The largest ||batch - alone|| / ||alone|| of a pair's merged update at a layer, and of a loss term's curve."""
    together = merge_pairs(model, method, items, 0, TRAINER)
    alone = [merge_pairs(model, method, [each], 0, TRAINER)[0] for each in items]
    return max(apart(left, right) for left, right in zip(together, alone, strict=True))


def apart(left: MergeResult, right: MergeResult) -> float:
    updates = [
        (left.lora[layer].up @ left.lora[layer].down, right.lora[layer].up @ right.lora[layer].down)
        for layer in right.lora
    ]
    curves = [(torch.tensor(left.losses[term]), torch.tensor(right.losses[term])) for term in right.losses]
    return max(float((a - b).norm() / b.norm()) for a, b in updates + curves)


if __name__ == "__main__":
    main()
