"""Measure time and memory of a merge step against a plain sequential implementation; see README.md.

python -m benchmarks.merge_step --size micro|slice|sdxl
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.contenders import (
    DUOLORA,
    EXTRA_DUOLORA,
    EXTRA_RELEASED,
    FLOOR,
    METHODS,
    PLAIN_DUOLORA,
    PLAIN_ZIPLORA,
    RELEASED,
    SEED,
    ZIPLORA,
    Contender,
    Ours,
    Plain,
    builders,
    differences,
    loras_of,
)
from benchmarks.measure import (
    Peak,
    gigaflops,
    in_own_process,
    interleaved,
    markdown,
    matmul_rate,
    new_file,
    publish,
    ratio,
    seconds,
)
from benchmarks.sizes import DIFFERENCES, RANKS, build
from lorabench.engine.lightning import fit

TOLERANCE = 1e-4  # relative, for fp32
EXTRAS = {DUOLORA: EXTRA_DUOLORA, RELEASED: EXTRA_RELEASED}
PAIRS = ((ZIPLORA, PLAIN_ZIPLORA), (RELEASED, PLAIN_DUOLORA))
Numbers = dict[str, dict[str, float | None]]  # contender -> measurement -> value


def main(arguments: list[str] | None = None) -> None:
    """Measure all contenders and publish the table."""
    options = parsed(arguments)
    settings = (options.size, options.device, options.dtype, options.latents, options.threads)
    memory = {name: in_own_process(peak, name, *settings) for name in (*METHODS, FLOOR)}
    model = prepared(*settings)
    contenders = {name: make() for name, make in builders(model, loras_of(model, options.size)).items()}
    far = checked(contenders, model.dtype)
    times = interleaved({name: timer(each, model.device) for name, each in contenders.items()}, options.repeats)
    rate = matmul_rate(model.device, model.dtype)
    numbers: Numbers = {}
    for name, contender in contenders.items():
        contender.attach()
        contender.prepare(0)
        work = gigaflops(lambda contender=contender: contender.run(0))
        contender.detach()
        taken = median(times[name])
        numbers[name] = {
            "seconds": taken,
            "against reference ZipLoRA": ratio(times[name], times[PLAIN_ZIPLORA]),
            "MiB": memory.get(name),
            "GFLOP": work,
            "share of the matmul rate": work / taken / rate,
        }
    whole = loops(model, options)
    facts = {
        "machine": machine(options, model),
        "matmul GFLOP/s": rate,
        "largest relative differences": far,
        "steps": numbers,
        "goals": goals(times, memory, whole if (options.size, options.steps) == ("sdxl", 100) else {}),
        "in the product's loop": whole,
    }
    text = report(facts)
    publish(text, facts | {"times": times}, options)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(RANKS), default="micro")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 for sdxl, else float32")
    parser.add_argument("--latents", type=int, help="edge of the latents for slice and sdxl, a multiple of 4")
    parser.add_argument("--repeats", type=int, default=5, help="rounds after one warm-up round")
    parser.add_argument(
        "--steps", type=int, help="steps of a whole merge in the product's loop; default: 100 for sdxl, else 0"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    parser.add_argument("--out", type=new_file, help="markdown file to write")
    parser.add_argument("--json", type=new_file, help="JSON file to write with all numbers")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.size == "sdxl" else "float32")
    options.steps = options.steps if options.steps is not None else 100 * (options.size == "sdxl")
    if options.latents and (options.size not in DIFFERENCES or options.latents % 4):
        parser.error("--latents must be a multiple of 4 and needs --size slice or sdxl; use --latents 16")
    return options


def prepared(size: str, device: str, dtype: str, latents: int | None, threads: int) -> Any:
    """Set the number of threads and build the model."""
    torch.set_num_threads(threads)
    return build(size, device, getattr(torch, dtype), latents)


def peak(name: str, size: str, *settings: Any) -> float | None:
    """Return the peak MiB of building a contender's adapters and two steps, without the loaded UNet and LoRAs."""
    model = prepared(size, *settings)
    make = builders(model, loras_of(model, size))[name]
    warm_up(model)
    memory = Peak(model.device)
    memory.start()
    contender = make()
    contender.attach()
    for i in range(2):
        contender.run(i)
    return memory.mib()


def warm_up(model: Any) -> None:
    """Run the device, autograd and Adam once, so that their one-time costs are not measured."""
    number = torch.nn.Parameter(torch.ones(1, device=model.device))
    number.square().sum().backward()
    torch.optim.Adam([number]).step()
    with torch.no_grad():
        x = torch.randn(1, model.unet.config.in_channels, *(model.unet.config.sample_size,) * 2, device=model.device)
        model.predict(x, torch.tensor([0], device=model.device), model.encode_prompts([""]))


def checked(contenders: dict[str, Contender], dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Exit with an error if our step and the reference compute different numbers, else return the differences."""
    far = {}
    for mine, theirs in PAIRS:
        left, right = contenders[mine], contenders[theirs]
        assert isinstance(left, Ours) and isinstance(right, Plain)
        far[mine] = differences(left, right)
        if dtype == torch.float32 and max(far[mine].values()) > TOLERANCE:
            sys.exit(f"{mine} and its reference differ by {far[mine]}; the tolerance is {TOLERANCE}")
    return far


def timer(contender: Contender, device: torch.device) -> Any:
    """Return a function from the number of a round to the seconds of its step."""

    def timed(i: int) -> float:
        contender.attach()
        contender.prepare(i)
        taken = seconds(lambda: contender.run(i), device)
        contender.detach()
        return taken

    return timed


def goals(
    times: Mapping[str, Sequence[float]], memory: Mapping[str, float | None], whole: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Compare the measurements with their goals."""
    rows = [("reference ZipLoRA step / ZipLoRA step", ratio(times[PLAIN_ZIPLORA], times[ZIPLORA]), "at least", 3.0)]
    ours, theirs = memory[ZIPLORA], memory[PLAIN_ZIPLORA]
    if ours is not None and theirs is not None:
        rows.append(("memory of a ZipLoRA step / that of the reference", ours / theirs, "at most", 0.5))
    for name, extra in EXTRAS.items():
        both = [a + b for a, b in zip(times[ZIPLORA], times[extra], strict=True)]
        rows.append((f"{name} step / (ZipLoRA step + {extra})", ratio(times[name], both), "at most", 1.16))
        rows.append((f"{name} step / reference ZipLoRA step", ratio(times[name], times[PLAIN_ZIPLORA]), "at most", 1.0))
    if DUOLORA in whole:
        rows.append(("s for 100 DuoLoRA steps of SDXL on a GPU", whole[DUOLORA], "at most", 30.0))
    return [
        {
            "quantity": quantity,
            "value": value,
            "goal": f"{bound} {goal:g}",
            "met": (value >= goal) == (bound == "at least"),
        }
        for quantity, value, bound, goal in rows
    ]


def loops(model: Any, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of all steps of a merge in the product's training loop."""
    taken = {}
    for name in (ZIPLORA, RELEASED, DUOLORA) if options.steps else ():
        ours = Ours(model, loras_of(model, options.size), METHODS[name])
        ours.attach()
        # "32-true" does not change the precision of any tensor
        taken[name] = seconds(lambda ours=ours: fit(ours.module, options.steps, model.device, "32-true"), model.device)
        ours.detach()
    return taken


def machine(options: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Return a description of the machine and the settings."""
    cuda = model.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(model.device) if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "size": options.size,
        "latent edge": model.unet.config.sample_size,
        "adapted layers": len(model.layers.trained()),
        "rank": RANKS[options.size],
        "dtype": options.dtype,
        "threads": options.threads,
        "repeats": options.repeats,
        "steps": options.steps,
        "seed": SEED,
    }


def report(facts: dict[str, Any]) -> str:
    """Return the tables as markdown."""
    steps: Numbers = facts["steps"]
    plain, ours = steps[PLAIN_ZIPLORA]["seconds"], steps[ZIPLORA]["seconds"]
    assert plain is not None and ours is not None
    head = ["step", "s", "x reference ZipLoRA", "s beyond ZipLoRA", "MiB", "GFLOP", "share of the matmul rate"]
    rows = []
    for name, row in steps.items():
        taken, against, mib, work, share = (row[key] or 0.0 for key in row)
        beyond = f"{taken - ours:+.3f}" if name in EXTRAS else ""
        rows.append([name, f"{taken:.3f}", f"{against:.2f}", beyond, f"{mib:.0f}" if mib else "",
                     f"{work:.0f}", f"{share:.0%}"])  # fmt: skip
    tests = [
        [each["quantity"], f"{each['value']:.2f}", each["goal"], "met" if each["met"] else "missed"]
        for each in facts["goals"]
    ]
    far = "; ".join(
        f"{name}: losses {each['loss']:.0e}, gradients {each['gradient']:.0e}"
        for name, each in facts["largest relative differences"].items()
    )
    lines = [
        ", ".join(f"{key} {value}" for key, value in facts["machine"].items()),
        f"Largest relative differences from the reference: {far}",
        markdown(head, rows),
        markdown(["quantity", "measured", "goal", ""], tests),
    ]
    if facts["in the product's loop"]:
        count = facts["machine"]["steps"]
        lines.append(
            markdown(
                ["whole merge", f"s for {count} steps"],
                [[name, f"{taken:.1f}"] for name, taken in facts["in the product's loop"].items()],
            )
        )
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
