"""What a report is made from: the run folder, and the pictures that its scores name.

    scores.parquet                                     tidy rows, one an image x metric x reference
    manifest.json                                      method, ablation, dataset, model, seed, and
        costs       {learned_parameters, merge_seconds (a pair), seconds_per_image}
        timings     {stage: seconds}
        versions    {package: version}
        losses      {"<content>+<style>": {term: [a value a step]}}
    config.yaml                                        shown as it is
    images/<method or frame>/<content>+<style>/<index:02d>.png
                                                       <method>-<ablation>, where there are several rows of methods
    references/{content,style}/<name>/<i>.png
    figures/rank_by_layer.png                          where there were merges

A content may be several subjects in one picture and is then called "mug_1+cat_1", everywhere; styles likewise.
A run of several methods (task=compare) has `rows` in its manifest: method, ablation, costs and losses of each.
Of the manifest only the first five keys are required; without costs or losses the report is shorter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lorabench.base import UserError
from lorabench.config.schemas import ProtocolSpec
from lorabench.report import protocols
from lorabench.report.labels import FRAMES, label

REQUIRED = ("method", "ablation", "dataset", "model", "seed")
RANK_FIGURE = "figures/rank_by_layer.png"


def label_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with their column `label`."""
    labels = [label(m, a) for m, a in zip(scores["method"], scores["ablation"], strict=True)]
    return scores.assign(label=labels)


@dataclass(frozen=True)
class Picture:
    """One generated image with its scores, averaged over its references; values: by metric, as Table names them."""

    label: str
    content: str
    style: str
    prompt: str
    seed: int
    index: int
    path: Path
    values: dict[str, float]

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        """What the image is, wherever it is in a run."""
        return self.label, self.content, self.style, self.prompt, self.seed


@dataclass(frozen=True)
class RunFolder:
    """A finished run on disk; see the module for its layout.

    variant: What tells its row from those of other runs of the method, see report/pooling.py.
    """

    path: Path
    manifest: dict
    scores: pd.DataFrame
    variant: str = ""

    @classmethod
    def load(cls, path: Path | str) -> RunFolder:
        """The finished run of one method."""
        [run] = cls.load_all(path)
        return run

    @classmethod
    def load_all(cls, path: Path | str) -> list[RunFolder]:
        """Read manifest and scores; of a run of several methods (task=compare) each as if it had run alone.

        A folder that is no finished run is the user's mistake.
        """
        path = Path(path)
        for name in ("manifest.json", "scores.parquet"):
            if not (path / name).is_file():
                raise UserError(f"{path} is no finished run (no {name}); use the folder that `python run.py` printed")
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            scores = pd.read_parquet(path / "scores.parquet")
            scores = scores[scores["use"] == "joint"] if "use" in scores else scores  # what tables report
        except ValueError as error:  # of either reader
            raise UserError(f"{path} has a broken manifest.json or scores.parquet; run its command again") from error
        scores, runs = label_rows(scores), []
        several = manifest.pop("rows", [])
        for own in several or [{}]:
            one = manifest | own
            if missing := [key for key in REQUIRED if key not in one]:
                raise UserError(f"{path / 'manifest.json'} has no {', '.join(missing)}; run its command again")
            run = cls(path, one, scores)
            mine = scores["label"].isin([run.label, *FRAMES])
            runs.append(replace(run, scores=scores[mine]) if several else run)
        return runs

    @property
    def label(self) -> str:
        return " ".join(filter(None, [label(self.manifest["method"], self.manifest["ablation"]), self.variant]))

    def named(self, settings: Sequence[str]) -> RunFolder:
        """Return the run with these settings ("fit.steps=50") in the label of its row, unless that is a baseline."""
        if not settings or self.label in FRAMES:
            return self
        own = replace(self, variant=" ".join(settings))
        mine = self.scores["label"] == self.label
        return replace(own, scores=self.scores.assign(label=self.scores["label"].mask(mine, own.label)))

    @property
    def method(self) -> dict[str, Any]:
        """The settings of the method."""
        return self.manifest.get("settings") or self.settings.get("method") or {}

    @property
    def config(self) -> str:
        """The resolved config as text; empty when the folder has none."""
        file = self.path / "config.yaml"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved config; empty when the folder has none that can be read."""
        try:
            found = yaml.safe_load(self.config)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def losses(self) -> dict[str, dict[str, list[float]]]:
        """Pair -> loss term -> a value a step."""
        return self.manifest.get("losses") or {}

    @property
    def rank_figure(self) -> Path | None:
        """Ranks along the network (report/ranks.py)."""
        path = self.path / RANK_FIGURE
        return path if path.is_file() else None

    def images_of(self, method: str, ablation: str) -> Path:
        """Where a row's images lie; an ablation's beside those of others have a folder of their own."""
        own = self.path / "images" / f"{method}-{ablation}"
        return own if own.is_dir() else self.path / "images" / method

    def references(self, role: str, name: str) -> list[Path]:
        """Reference images of a concept, role "content" or "style"."""
        return sorted((self.path / "references" / role / name).glob("*.png"))

    @cached_property
    def pictures(self) -> list[Picture]:
        """Every scored image, in the order of the scores."""
        key = ["method", "ablation", "label", "content", "style", "prompt", "seed", "image"]
        columns, _ = protocols.columns(protocols.ALL, self.scores)
        names = {(column.spec.metric, column.backbone): column.name for column in columns}
        table = self.scores.pivot_table("value", key, ["metric", "backbone"], sort=False)
        found = []
        for at, scores in zip(table.index, table.to_dict("records"), strict=True):
            row = dict(zip(key, at, strict=True))
            pair = f"{row['content']}+{row['style']}"
            path = self.images_of(row["method"], row["ablation"]) / pair / f"{row['image']:02d}.png"
            if not path.is_file():
                raise UserError(f"{path} was scored but is missing; run the command of this folder again")
            found.append(
                Picture(
                    label=row["label"],
                    content=row["content"],
                    style=row["style"],
                    prompt=row["prompt"],
                    seed=row["seed"],
                    index=row["image"],
                    path=path,
                    values={name: scores[of] for of, name in names.items() if pd.notna(scores[of])},
                )
            )
        return found


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """Run folders, each once: those given, and of a folder that is none the finished runs in it (a sweep's)."""
    found: list[Path] = []
    for folder in folders:
        below = sorted(file.parent for file in folder.glob("*/scores.parquet"))
        found += [folder] if (folder / "scores.parquet").is_file() or not below else below
    return list({folder.resolve(): folder for folder in found}.values())


def common_protocol(runs: list[RunFolder]) -> ProtocolSpec:
    """The protocol that all runs were made with; that of all metrics where they differ."""
    found = [protocols.of_config(run.config) for run in runs]
    return found[0] if all(each == found[0] for each in found) else protocols.ALL
