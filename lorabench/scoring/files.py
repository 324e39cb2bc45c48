"""Find the scorers of a run and their weights, before any work starts and without importing torch.

A scorer is a description (config.json: name, kind, architecture, preprocess, weights) and a safetensors file. The
subfolders of `scorers.path` contain both. For the published backbones in `scorers.backbones`, descriptions are in the
package (assets/scorers) and weights are elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lorabench.base import ASSETS, UserError
from lorabench.config.choices import unknown
from lorabench.config.schemas import ScorerSpec
from lorabench.scoring.backbone_weights import find_weights
from lorabench.scoring.description import FACTORS, KINDS, METRICS, ScorerFiles, read_config

MICRO_SCORERS = ASSETS / "micro_scorers"
DESCRIPTIONS = ASSETS / "scorers"
TRUTH = "truth"  # subfolder of scorers with the readout of the microworld's ground truth


@dataclass(frozen=True)
class ScorerSet:
    """The scorers of a run, in order; `truth` is the folder with a ground-truth readout for them, if any."""

    scorers: tuple[ScorerFiles, ...]
    truth: Path | None = None

    def metrics(self) -> dict[str, tuple[str, ...]]:
        """Return the names of each scorer's scores, by the scorer's name."""
        configs = [read_config(files.config) for files in self.scorers]
        return {config["name"]: METRICS[config["kind"]] for config in configs}

    @property
    def reader(self) -> ScorerFiles | None:
        """Return the network that reads the factors of the microworld, if there is one."""
        folder = self.truth / TRUTH / FACTORS if self.truth else None
        return ScorerFiles.of(folder) if folder and (folder / "config.json").is_file() else None

    def sources(self) -> list[Path]:
        """Return the files and folders that scores depend on, for the digest."""
        found = [path for files in self.scorers for path in files.contents()]
        return [*found, *([self.truth / TRUTH] if self.truth else [])]


def scorer_set(spec: ScorerSpec) -> ScorerSet:
    """Return the scorers of a configuration; published weights that are not on this machine are downloaded.

    Raises:
        UserError: If a file is missing; the message names its source and the setting for another file.
    """
    folders, truth = folder_scorers(spec.path) if spec.path else ([], None)
    found = [*folders, *backbone_scorers(spec)]
    if not found:
        raise UserError("scorers.path or scorers.backbones must name a scorer; use scorers=micro or scorers=real")
    names = [read_config(files.config)["name"] for files in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"scorer {twice} is defined twice; name it once in scorers.backbones and scorers.path")
    return ScorerSet(tuple(found), truth)


def folder_scorers(path: str | Path) -> tuple[list[ScorerFiles], Path | None]:
    """Return the scorers in the subfolders of "micro" or a path, and this folder if it has a ground-truth readout."""
    root = MICRO_SCORERS if str(path) == "micro" else Path(path)
    configs = [config for config in root.glob("*/config.json") if config.parent.name != TRUTH]
    if not configs:
        raise UserError(f"scorers.path={path} must contain <name>/config.json; use scorers=micro or scorers=real")
    found = [ScorerFiles.of(config.parent) for config in configs]
    found.sort(key=lambda files: (KINDS.index(read_config(files.config)["kind"]), files.config))
    for files in found:
        if not files.weights.is_file():
            raise UserError(f"weights not found: {files.weights}; add the safetensors file of the scorer")
    return found, root if (root / TRUTH).is_dir() else None


def backbone_scorers(spec: ScorerSpec) -> list[ScorerFiles]:
    """Return the backbones of the configuration with weights from a given file, the hub's cache, or the hub."""
    known = backbones()
    for name in spec.backbones:
        if name not in known:
            raise UserError(unknown("scorers.backbones", name, known))
        if spec.backbones.count(name) > 1:
            raise UserError(f"scorers.backbones must contain {name} only once; remove the others")
    given = {key: path for key, path in spec.weights.items() if path is not None}
    keys = {key_of(name): name for name in known}
    for key in given:
        if key not in keys:
            raise UserError(unknown("scorers.weights", key, keys))
        if keys[key] not in spec.backbones:
            names = ",".join([*spec.backbones, keys[key]])
            raise UserError(f"scorers.weights.{key} must belong to a scoring backbone; use scorers.backbones=[{names}]")
    by_hand = sorted(spec.backbones, key=lambda name: key_of(name) not in given)  # given files first: no download
    weights = {name: find_weights(read_config(known[name]), key_of(name), given.get(key_of(name))) for name in by_hand}
    return [ScorerFiles(known[name], weights[name]) for name in spec.backbones]


def backbones() -> dict[str, Path]:
    """Return the names of the published backbones with their descriptions in the package."""
    return {json.loads(path.read_text())["name"]: path for path in sorted(DESCRIPTIONS.glob("*.json"))}


def key_of(name: str) -> str:
    """Return a backbone's key in `scorers.weights`; it has no @, which is special on Hydra's command line.

    >>> key_of("dino@vits16")
    'dino_vits16'
    """
    return name.replace("@", "_")
