"""Golden outputs: results of a component change only with its version.

pytest tests/test_golden.py -n 0 --write-golden     # after a version was raised
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import fitting, merged, sampled, trained

from lorabench.base import seed_of
from lorabench.config.dataset_schemas import MicroworldSpec, StylisedSpec
from lorabench.config.schemas import GenerateSpec, LoRASpec, TrainerSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.concepts import ROLES
from lorabench.data.scenes import Prompts
from lorabench.lora.adapter import LoRA
from lorabench.merging import presets
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.method import Method, load
from lorabench.personalization.training import Environment
from lorabench.scoring.description import ScorerFiles
from lorabench.scoring.load import load_scorer

FILE = Path(__file__).parent / "golden.json"
WORLD = MicroworldSpec("microworld", ["mug_1"], ["ink_1"], None, 2, 2, 1)
STYLISED = StylisedSpec("microworld_stylised", "all", "all", None, 1, 1, 1, True, ["mug_1/ink_1"], 1, 0)
SKIPPED = {"training/given"}  # trains nothing
NEEDED = {"merge/para": "para"}  # the training whose adapters a merge needs
EQUAL_RANKS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
TOLERANCE = 0.01  # relative; another machine rounds differently, and Adam amplifies it


def numbers_of(lora: LoRA) -> list[float]:
    """Return the norms of token embeddings, and of four updates with their products with a fixed random matrix."""
    found = [float(vectors.norm()) for encoders in lora.tokens.values() for vectors in encoders.values()]
    for layer in list(lora)[:: max(1, len(lora) // 4)][:4]:
        update = (lora[layer].up.double() @ lora[layer].down.double()).cpu()
        draw = torch.Generator().manual_seed(seed_of("golden", layer))
        probe = torch.randn(update.shape, generator=draw, dtype=torch.float64)
        found += [float(update.norm()), float((update * probe).sum() / probe.norm())]
    return found


def of_merge(model, loras, pair, method: Method, hypernetwork: Path) -> list[float]:
    if isinstance(method.merge, LearnedMasks):
        method = method.with_settings(fit=replace(method.merge.fit, steps=2))
    if method.options["merge"] == "lora_rar":
        method = method.with_settings(weights=str(hypernetwork))
    if getattr(method.merge, "combination", "") in EQUAL_RANKS:
        loras = (loras[0], loras[0].replaced({layer: replace(e, up=-e.up) for layer, e in loras[0].items()}))
    return numbers_of(merged(model, method, fitting(model, method, loras), pair).file)


def of_sampling(model, loras, method: Method) -> list[float]:
    scales, branches = sampled(model, method, loras, ROLES, 8, 3.0)
    weights = torch.arange(1, scales.values.numel() + 1, dtype=torch.float64).reshape(scales.values.shape)
    found = [float((scales.values * weights).sum() / weights.sum())]
    return found + [number for branch in branches or () for number in (branch.weight, *branch.scales)]


def of_training(model, method: Method, spec: LoRASpec, trainer: TrainerSpec, scorers: Path) -> list[float]:
    [pair] = load_pairs(STYLISED if method.training.images == "stylised" else WORLD, Prompts())
    env = Environment(
        0, trainer, generate=GenerateSpec(1, 2, 3.0, 8),
        scorer=lambda kind: load_scorer(ScorerFiles.of(scorers / kind), "cpu"),
    )  # fmt: skip
    jobs = {output.job.name: output.job for output in method.training.outputs(pair, spec)}
    adapters = [each for job in jobs.values() for each in trained(job, model, env).values()]
    return [number for adapter in adapters for number in numbers_of(adapter)]


OPTIONS = [f"{group}/{option}" for group in presets.GROUPS for option in presets.options(group)]


def version_of(option: str) -> int:
    group, _, name = option.partition("/")
    kind: Any = presets.component_class(group, name)
    return getattr(kind, "version", 1)


@pytest.mark.parametrize("option", [each for each in OPTIONS if each not in SKIPPED])
def test_results_change_only_with_version(
    option: str, model, loras, pair, lora_spec, hypernetwork, scorers, request: pytest.FixtureRequest
) -> None:
    group, _, name = option.partition("/")
    trained = f"+training.{NEEDED[option]}" if option in NEEDED else ""
    method = load(f"direct{trained}+{group}.{name}")
    if group == "merge":
        found = of_merge(model, loras, pair, method, hypernetwork)
    elif group == "sampling":
        found = of_sampling(model, loras, method)
    else:
        if name == "craft":
            method = load(f"direct+training.{name}", backbone={"steps": 2, "batch": 1}, layer_sets="blora")
        found = of_training(model, method, lora_spec, TrainerSpec("cpu", "32-true", 0, 1), scorers)
    known = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if request.config.getoption("--write-golden"):
        FILE.write_text(json.dumps(known | {option: {"version": version_of(option), "numbers": found}}, indent=1))
        return
    assert option in known, f"{option} has no golden output; run pytest tests/test_golden.py -n 0 --write-golden"
    assert known[option]["version"] == version_of(option), "the version was raised; run with --write-golden"
    assert found == pytest.approx(known[option]["numbers"], rel=TOLERANCE, abs=1e-6), (
        f"{option} gives other results under version {version_of(option)}: raise its version"
    )
