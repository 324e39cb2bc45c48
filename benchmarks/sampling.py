"""Time a sampling step of each way to apply two LoRAs against one merged file; see README.md.

python -m benchmarks.sampling --batch 1 8
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import interleaved, markdown, new_file, publish, ratio, seconds
from benchmarks.sizes import RANKS, build, random_lora
from lorabench.base import seed_of
from lorabench.data.concepts import ROLES
from lorabench.data.scenes import Scene
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import Adapters, export
from lorabench.merging.method import Method, load
from lorabench.merging.presets import presets
from lorabench.sampling.parts import StepScales, step_scales
from lorabench.sampling.rule import Branch, Context
from lorabench.sampling.sampler import sample_latents

PLAIN, LIVE = "one merged file", "direct, both LoRAs live"
# One active LoRA per layer and step, or (craft) one scale per row: they need no extra products.
CHOOSERS = ("klora", "est_lora", "lora_switch", "craft")
GOAL = 1.05  # upper bound of their time, relative to one merged file
TOLERANCE = 1e-3  # relative difference of the latents after one step, for fp32
GUIDANCE = 3.0
SCENE = Scene("a sks mug in szn style", "a mug in paint style", "a sks mug", "a mug in szn style", "a mug")


@dataclass(frozen=True)
class Way:
    """LoRAs and how they are applied during sampling."""

    loras: Sequence[LoRA]
    scales: StepScales | None = None
    branches: Sequence[Branch] | None = None

    @property
    def rows(self) -> int:
        """Return the number of UNet rows per image and sampling step."""
        return 2 if self.branches is None else sum(branch.weight != 0 for branch in self.branches)

    def draw(self, model: Any, adapters: Adapters, steps: int, batch: int) -> Tensor:
        """Return the latents of a batch of one scene."""
        scenes = [SCENE] * batch
        return sample_latents(model, scenes, range(batch), steps, GUIDANCE, adapters, self.scales, self.branches)


def main(arguments: list[str] | None = None) -> None:
    """Measure all ways and publish the table."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()[0]
    model = build(options.size, options.device, getattr(torch, options.dtype))
    loras = [uneven(random_lora(model, RANKS[options.size], role), role) for role in ROLES]
    ways, before = ways_of(model, loras, options.methods, options.steps)
    if far := differing(model, ways, loras, options.dtype):
        sys.exit(f"these methods differ from the merged file with the same scales: {far}; the tolerance is {TOLERANCE}")
    facts: dict[str, Any] = {
        "size": options.size, "device": options.device, "dtype": options.dtype, "threads": options.threads,
        "steps": options.steps, "rank": RANKS[options.size], "adapted layers": len(loras[0]),
        "repeats": options.repeats, "torch": torch.__version__, "load before": round(load_before, 1),
    }  # fmt: skip
    lines = [", ".join(f"{key} {value}" for key, value in facts.items())]
    for batch in options.batch:
        times = interleaved(
            {name: timer(model, way, options.steps, batch) for name, way in ways.items()}, options.repeats
        )
        facts[f"batch {batch}"] = times
        lines += [f"Images per batch: {batch}", table(times, ways, before), goals(times)]
    facts["seconds of setup"] = before
    publish("\n\n".join(lines) + "\n", facts, options)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(RANKS), default="micro")
    parser.add_argument("--methods", nargs="+", default=live_methods())
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="images per batch")
    parser.add_argument("--steps", type=int, default=5, help="sampling steps per round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 for sdxl, else float32")
    parser.add_argument("--repeats", type=int, default=40, help="rounds after one warm-up round")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    parser.add_argument("--out", type=new_file, help="markdown file to write")
    parser.add_argument("--json", type=new_file, help="JSON file to write with all numbers")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.size == "sdxl" else "float32")
    return options


def live_methods() -> list[str]:
    """Return the methods that one LoRA file cannot express, and B-LoRA, whose file has fewer layers."""
    return [name for name in presets() if not load(name).is_file or name == "blora"]


def uneven(lora: LoRA, name: str) -> LoRA:
    """Scale the layers differently, so that rules which choose a LoRA by layer choose different ones."""
    draws = {layer: torch.Generator().manual_seed(seed_of("strength", name, layer)) for layer in lora}
    scales = {layer: float(torch.rand(1, generator=draw)) + 0.25 for layer, draw in draws.items()}
    return LoRA({layer: Factors(each.down, each.up * scales[layer]) for layer, each in lora.items()})


def ways_of(
    model: Any, loras: Sequence[LoRA], names: Sequence[str], steps: int
) -> tuple[dict[str, Way], dict[str, float]]:
    """Return the ways to sample by name, and the seconds that each needs once per pair of LoRAs."""
    ways: dict[str, Way] = {}
    before: dict[str, float] = {}
    for name, make in {
        PLAIN: lambda: Way([export(loras)]),
        LIVE: lambda: Way(loras),
        **{name: (lambda name=name: way_of(model, load(name), loras, steps)) for name in names},
    }.items():
        start = perf_counter()
        ways[name] = make()
        before[name] = perf_counter() - start
    return ways, before


def way_of(model: Any, method: Method, loras: Sequence[LoRA], steps: int) -> Way:
    """Return how the product generates with a method: with the merged file, or with both LoRAs at their scales."""
    parts = method.merge.parts(loras, ROLES, None)
    assert parts is not None
    context = Context(ROLES, steps, GUIDANCE, model.layers.adapted(loras, ROLES))
    if method.is_file:
        return Way([export(loras, scales={name: parts.scales(layer) for name, layer in context.layers.items()})])
    return Way(parts.adapters, step_scales(method.sampling, parts, context), method.sampling.branches(context))


def differing(model: Any, ways: dict[str, Way], loras: Sequence[LoRA], dtype: str) -> dict[str, float]:
    """Return the ways whose first step differs from a merged file with the same scales; skip those with branches."""
    far = {}
    for name, way in ways.items():
        if way.branches is not None or dtype != "float32":
            continue
        first = dict(zip(way.scales.layers, way.scales.values[0].tolist(), strict=True)) if way.scales else None
        stand_in = Way([export(way.loras, scales=first)])
        latents = []
        for each in (way, stand_in):
            with model.attach(each.loras) as adapters:
                latents.append(each.draw(model, adapters, 1, 1))
        mine, theirs = latents
        apart = float((mine - theirs).norm() / theirs.norm())
        if apart > TOLERANCE:
            far[name] = apart
    return far


def timer(model: Any, way: Way, steps: int, batch: int) -> Callable[[int], float]:
    """Return a function that measures seconds per image and sampling step, with attached LoRAs and without decoding."""

    def timed(_: int) -> float:
        with model.attach(way.loras) as adapters:
            return seconds(lambda: way.draw(model, adapters, steps, batch), model.device) / batch / steps

    return timed


def table(times: dict[str, list[float]], ways: dict[str, Way], before: dict[str, float]) -> str:
    """Format the times; ratios are medians and quartiles of the ratios within rounds."""
    head = ["", "UNet rows per image", "ms per image", f"x {PLAIN}", "quartiles", "s of setup"]
    rows = []
    for name, each in times.items():
        ratios = [mine / plain for mine, plain in zip(each, times[PLAIN], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        cells = [str(ways[name].rows), f"{1e3 * median(each):.1f}", f"{ratio(each, times[PLAIN]):.3f}"]
        rows.append([name, *cells, f"{low:.2f} to {high:.2f}", f"{before[name]:.2f}"])
    return markdown(head, rows)


def goals(times: dict[str, list[float]]) -> str:
    """Return the table of goals."""
    rows = []
    for name in CHOOSERS:
        if name in times:
            found = ratio(times[name], times[PLAIN])
            rows.append([f"{name} / {PLAIN}", f"at most {GOAL}", f"{found:.3f}", "met" if found <= GOAL else "missed"])
    return markdown(["quantity", "goal", "measured", ""], rows)


if __name__ == "__main__":
    main()
