"""Merge two LoRA files of SDXL's size by our command and, if it is installed, by kohya's scripts: CPU seconds, memory.

    python -m benchmarks.files [--kohya FOLDER_OF_SD_SCRIPTS] [--methods direct,svd,ties] [--rank 64]

Every command runs in a process of its own on one thread. kohya's scripts are `networks/sdxl_merge_lora.py --concat` for
the direct merge and `networks/svd_merge_lora.py` for `svd`.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lorabench.base import seed_of
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.models.shapes import layer_map

ROOT = Path(__file__).parents[1]
KOHYA = {
    "direct": ["sdxl_merge_lora.py", "--concat"],
    "svd": ["svd_merge_lora.py", "--new_rank", "64", "--device", "cpu"],
}


def write_inputs(folder: Path, rank: int) -> list[Path]:
    """Write two LoRAs with factors of trained sizes on all attention layers, in fp16."""
    paths = []
    for name in ("content", "style"):
        factors = {}
        for layer in layer_map("sdxl").trained().values():
            rng = torch.Generator().manual_seed(seed_of(name, layer.name))
            down = torch.randn(rank, layer.in_features, generator=rng) * layer.in_features**-0.5
            factors[layer.name] = Factors(down, torch.randn(layer.out_features, rank, generator=rng) * 0.02)
        paths.append(folder / f"{name}.safetensors")
        Adapter(factors).save(paths[-1], dtype="float16")
    return paths


def measured(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Return CPU seconds, seconds and peak memory in MiB of a command.

    Raises:
        RuntimeError: If it fails.
    """
    code = (
        "import resource, subprocess, sys; result = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss); "
        "sys.exit(result.stderr[-500:] if result.returncode else 0)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(result.stderr)
    cpu, memory = map(float, result.stdout.split())
    return cpu, time.perf_counter() - start, memory / 1024


def main() -> None:
    """Measure merges of files by lorabench and, if its folder is given, by kohya's scripts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kohya", type=Path)
    parser.add_argument("--methods", default="direct,svd,ties")
    parser.add_argument("--rank", type=int, default=64)
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        content, style = write_inputs(folder, asked.rank)
        print(f"two files of rank {asked.rank}, {content.stat().st_size / 1e6:.0f} MB each")
        print("| command | CPU s | s | peak MiB | file MB |\n|---|---:|---:|---:|---:|")
        for method in asked.methods.split(","):
            ours = [sys.executable, str(ROOT / "run.py"), "task=merge", f"content={content}", f"style={style}",
                    f"method={method}", "output=ours.safetensors"]  # fmt: skip
            report(f"lorabench {method}", ours, folder, folder / "ours.safetensors")
            if asked.kohya and method in KOHYA:
                script, *options = KOHYA[method]
                theirs = [sys.executable, str(asked.kohya / "networks" / script), *options, "--models", str(content),
                          str(style), "--ratios", "1", "1", "--save_to", "kohya.safetensors", "--save_precision",
                          "fp16", "--precision", "float"]  # fmt: skip
                report(f"kohya {script}", theirs, folder, folder / "kohya.safetensors")


def report(name: str, command: list[str], folder: Path, output: Path) -> None:
    """Measure a command and print a row of the table."""
    cpu, seconds, memory = measured(command, folder)
    print(f"| {name} | {cpu:.1f} | {seconds:.1f} | {memory:,.0f} | {output.stat().st_size / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
