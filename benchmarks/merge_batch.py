"""Time merges of several pairs in one batch against one pair at a time; see README.md.

python -m benchmarks.merge_batch
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from typing import Any

import torch

from benchmarks.measure import interleaved, markdown, new_file, publish, ratio, seconds
from benchmarks.sizes import RANKS, build, plain_pair, random_lora
from lorabench.config.schemas import TrainerSpec
from lorabench.merging.merge import Merge, Merged, MergeEnvironment, MergeItem
from lorabench.merging.method import load

BATCHES = (1, 2, 4, 8)
# A batch sums rows in another order. Adam scales gradients of any size to a full step, so rounding of a gradient near
# zero becomes visible in its mask. Therefore whole updates are compared.
TOLERANCE = 1e-3
TRAINER = TrainerSpec(accelerator="auto", precision="32-true", workers=0, threads=1)


def main(arguments: list[str] | None = None) -> None:
    """Measure merges by the number of pairs per batch."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    model = build("micro", options.device, torch.float32)
    items = [item(model, str(number)) for number in range(max(BATCHES))]
    facts: dict[str, Any] = {"device": options.device, "steps": options.steps, "repeats": options.repeats}
    facts |= {"rank": RANKS["micro"], "adapted layers": len(items[0].loras[0]), "torch": torch.__version__}
    env = MergeEnvironment(model.layers, model, 0, TRAINER)
    lines = [", ".join(f"{key} {value}" for key, value in facts.items())]
    for name in options.methods:
        merge = load(name, fit={"steps": options.steps}).merge
        farthest = difference(merge, env, items)
        if farthest > TOLERANCE:
            sys.exit(
                f"{name}: merges in a batch differ by {farthest:.1e} from single merges; the tolerance is {TOLERANCE}"
            )

        def timed(count: int, merge: Merge = merge) -> Any:
            return lambda _: seconds(lambda: merge.merge_pairs(items[:count], env), model.device) / count

        times = interleaved({str(count): timed(count) for count in BATCHES}, options.repeats)
        rows = [
            [str(count), f"{60 / median(times[str(count)]):.1f}", f"{ratio(times['1'], times[str(count)]):.2f}"]
            for count in BATCHES
        ]
        lines += [
            f"{name}: largest relative difference from single merges {farthest:.0e}, tolerance {TOLERANCE:g}",
            markdown(["pairs per batch", "pairs per minute", "x batch of 1"], rows),
        ]
        facts[name] = {"seconds per pair": times, "difference": farthest}
    publish("\n\n".join(lines) + "\n", facts, options)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["ziplora", "duolora"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps per merge")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after one warm-up round")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    parser.add_argument("--out", type=new_file, help="markdown file to write")
    parser.add_argument("--json", type=new_file, help="JSON file to write with all numbers")
    return parser.parse_args(arguments)


def item(model: Any, name: str) -> MergeItem:
    """Build a pair with its own LoRAs."""
    loras = tuple(random_lora(model, RANKS["micro"], f"{role} {name}") for role in ("content", "style"))
    return MergeItem(loras, plain_pair(name))


def difference(merge: Merge, env: MergeEnvironment, items: list[MergeItem]) -> float:
    """Return the largest ||batch - single|| / ||single|| of the merged updates of a layer and of loss curves."""
    together = merge.merge_pairs(items, env)
    single = [merge.merge_pairs([each], env)[0] for each in items]
    return max(apart(left, right) for left, right in zip(together, single, strict=True))


def apart(left: Merged, right: Merged) -> float:
    """Return the largest relative difference of two merges in updates and loss curves."""
    updates = [
        (left.file[layer].up @ left.file[layer].down, right.file[layer].up @ right.file[layer].down)
        for layer in right.file
    ]
    curves = [(torch.tensor(left.losses[term]), torch.tensor(right.losses[term])) for term in right.losses]
    return max(float((a - b).norm() / b.norm()) for a, b in updates + curves)


if __name__ == "__main__":
    main()
