"""Which scorers a run has and where their weights lie; settled before any work starts, and without torch.

A scorer is a description (config.json: name, kind, architecture, preprocess, weights) and a safetensors file.
Descriptions come from the folders of `scorers.path`, each with its weights beside it, or ship with the package
(assets/scorers) for the published backbones of `scorers.backbones`, whose weights lie elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lorabench.base import ASSETS, UserError
from lorabench.config.choices import unknown
from lorabench.config.schemas import ScorerSpec
from lorabench.scoring.backbone_weights import find_weights
from lorabench.scoring.description import KINDS, METRICS, ScorerFiles, read_config

MICRO_SCORERS = ASSETS / "micro_scorers"
DESCRIPTIONS = ASSETS / "scorers"
TRUTH = "truth"  # the folder of the microworld's readout beside scorers


@dataclass(frozen=True)
class ScorerSet:
    """The scorers of a run, in order; truth: the folder whose readout of the microworld fits them."""

    scorers: tuple[ScorerFiles, ...]
    truth: Path | None = None

    def metrics(self) -> dict[str, tuple[str, ...]]:
        """Return the names of each scorer's scores, by the scorer's name."""
        configs = [read_config(files.config) for files in self.scorers]
        return {config["name"]: METRICS[config["kind"]] for config in configs}

    def sources(self) -> list[Path]:
        """Return the files and folders that scores depend on, for the digest."""
        found = [path for files in self.scorers for path in files.contents()]
        return [*found, *([self.truth / TRUTH] if self.truth else [])]


def scorer_set(spec: ScorerSpec) -> ScorerSet:
    """The scorers of a configuration, fetched from the hub where they are nowhere here.

    Raises UserError, saying which file is missing, where it comes from and how to name another.
    """
    folders, truth = folder_scorers(spec.path) if spec.path else ([], None)
    found = [*folders, *backbone_scorers(spec)]
    if not found:
        raise UserError("scorers.path and scorers.backbones name no scorer; type scorers=micro or scorers=real")
    names = [read_config(files.config)["name"] for files in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two scorers are called {twice}; name each once in scorers.backbones and scorers.path")
    return ScorerSet(tuple(found), truth)


def folder_scorers(path: str | Path) -> tuple[list[ScorerFiles], Path | None]:
    """The scorers in the subfolders of "micro" or of a path, by kind and name; and that folder if it has a truth."""
    root = MICRO_SCORERS if str(path) == "micro" else Path(path)
    configs = [config for config in root.glob("*/config.json") if config.parent.name != TRUTH]
    if not configs:
        raise UserError(f"{root} has no scorer: no <name>/config.json is in it; type scorers=micro or scorers=real")
    found = [ScorerFiles.of(config.parent) for config in configs]
    found.sort(key=lambda files: (KINDS.index(read_config(files.config)["kind"]), files.config))
    for files in found:
        if not files.weights.is_file():
            raise UserError(f"weights not found: {files.weights}; put the scorer's safetensors there")
    return found, root if (root / TRUTH).is_dir() else None


def backbone_scorers(spec: ScorerSpec) -> list[ScorerFiles]:
    """The backbones that are named, with weights from a given file, the hub's cache, or the hub."""
    known = backbones()
    for name in spec.backbones:
        if name not in known:
            raise UserError(unknown("scorers.backbones", name, known))
        if spec.backbones.count(name) > 1:
            raise UserError(f"scorers.backbones names {name} twice; name each once")
    given = {key: path for key, path in spec.weights.items() if path is not None}
    keys = {key_of(name): name for name in known}
    for key in given:
        if key not in keys:
            raise UserError(unknown("scorers.weights", key, keys))
        if keys[key] not in spec.backbones:
            names = ",".join([*spec.backbones, keys[key]])
            raise UserError(f"scorers.weights.{key} is of no backbone that scores; type scorers.backbones=[{names}]")
    by_hand = sorted(spec.backbones, key=lambda name: key_of(name) not in given)  # what needs no connection first
    weights = {name: find_weights(read_config(known[name]), key_of(name), given.get(key_of(name))) for name in by_hand}
    return [ScorerFiles(known[name], weights[name]) for name in spec.backbones]


def backbones() -> dict[str, Path]:
    """Names of the published backbones and their packaged descriptions."""
    return {json.loads(path.read_text())["name"]: path for path in sorted(DESCRIPTIONS.glob("*.json"))}


def key_of(name: str) -> str:
    """A backbone's key in `scorers.weights`: an @ in a key means something else on a Hydra command line.

    >>> key_of("dino@vits16")
    'dino_vits16'
    """
    return name.replace("@", "_")
