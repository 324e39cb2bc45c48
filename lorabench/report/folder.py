"""Read a run folder: scores, manifest, config, and the images that the scores belong to.

    scores.parquet                                     one row per image, metric, backbone and reference
    manifest.json                                      method, ablation, dataset, model, seed, and
        note        sentence on the merge, if its method means something else on this model
        targets     set of layers that LoRAs were trained on (`lora.targets`)
        costs       {learned_parameters, merge_seconds (per pair), seconds_per_image}
        timings     {stage: seconds}
        versions    {package: version}
        losses      {"<content>+<style>": {term: [value per step]}}
        left_out_scenes  {scene: reason}, of a list whose prompts the model would cut
    config.yaml                                        resolved config
    images/<row>/<content>+<style>/<index:02d>.png
                                                       <method>-<ablation> if the run has several methods
    references/{content,style}/<name>/<i>.png
    figures/rank_by_layer.png                          if the run has merges

A content of several subjects in one image has a name such as "mug_1+cat_1"; the same applies to styles. The manifest
of a run with several methods (task=compare) has `rows` with method, ablation, costs and losses of each. Only the first
five keys of the manifest are required; without costs or losses the report is shorter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lorabench.base import UserError
from lorabench.config.schemas import ProtocolSpec
from lorabench.engine.output_folder import OutputFolder
from lorabench.report import protocols
from lorabench.report.labels import BASELINES_AND_ORACLE, label
from lorabench.report.uses import joint_scores, label_rows, other_scores, shown_scores

SCORES = "scores.parquet"
REQUIRED = ("method", "ablation", "dataset", "model", "seed")
RANK_FIGURE = "figures/rank_by_layer.png"


@dataclass(frozen=True)
class Picture:
    """One generated image; `values` are its scores by column of the table, averaged over the references."""

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
        """Return the keys that identify the image across runs."""
        return self.label, self.content, self.style, self.prompt, self.seed


@dataclass(frozen=True)
class RunFolder:
    """A finished run on disk, in the layout described above.

    Attributes:
        scores: Scores of joint images.
        variant: Settings that distinguish its row from other runs of the method (report/pooling.py).
        others: Scores of other uses, see `other_scores`.
    """

    path: Path
    manifest: dict
    scores: pd.DataFrame
    variant: str = ""
    others: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"label": []}))

    @classmethod
    def load(cls, path: Path | str) -> RunFolder:
        """Read the finished run of one method."""
        [run] = cls.load_all(path)
        return run

    @classmethod
    def load_all(cls, path: Path | str) -> list[RunFolder]:
        """Read manifest and scores; a run with several methods (task=compare) gives one RunFolder per method.

        The first one has the baseline and oracle rows.

        Raises:
            UserError: If the folder is not a finished run.
        """
        path = Path(path)
        for name in ("manifest.json", SCORES):
            if not (path / name).is_file():
                raise UserError(f"{path} is not a finished run (no {name}); use a folder that run.py printed")
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            every = pd.read_parquet(path / SCORES)
            scores, others = shown_scores(every), other_scores(every)
        except ValueError as error:  # from json or pandas
            raise UserError(f"{path} has a broken manifest.json or scores.parquet; run its command again") from error
        scores, others, runs = label_rows(scores), label_rows(others), []
        several = manifest.pop("rows", [])
        for own in several or [{}]:
            one = manifest | own
            if missing := [key for key in REQUIRED if key not in one]:
                raise UserError(f"{path / 'manifest.json'} has no {', '.join(missing)}; run its command again")
            run = cls(path, one, scores, others=others)
            shared = () if runs else BASELINES_AND_ORACLE  # rows of the folder, counted once
            mine, also = (each["label"].isin([run.label, *shared]) for each in (scores, others))
            runs.append(replace(run, scores=scores[mine], others=others[also]) if several else run)
        return runs

    @property
    def label(self) -> str:
        """Return the label of the run's row: method, ablation and changed settings."""
        return " ".join(filter(None, [label(self.manifest["method"], self.manifest["ablation"]), self.variant]))

    def named(self, settings: Sequence[str]) -> RunFolder:
        """Return the run with these words ("fit.steps=50") added to the label of its row, unless that is a baseline."""
        if not settings or self.label in BASELINES_AND_ORACLE:
            return self
        own = replace(self, variant=" ".join(filter(None, [self.variant, *settings])))
        scores, others = (
            each.assign(label=each["label"].mask(each["label"] == self.label, own.label))
            for each in (self.scores, self.others)
        )
        return replace(own, scores=scores, others=others)

    @property
    def method(self) -> dict[str, Any]:
        """Return the settings of the method."""
        return self.manifest.get("settings") or self.settings.get("method") or {}

    @property
    def config(self) -> str:
        """Return the resolved config as text, or "" if the folder has none."""
        file = self.path / "config.yaml"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the resolved config, or {} if the folder has none that can be read."""
        try:
            found = yaml.safe_load(self.config)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def losses(self) -> dict[str, dict[str, list[float]]]:
        """Return pair -> loss term -> values by step."""
        return self.manifest.get("losses") or {}

    @property
    def rank_figure(self) -> Path | None:
        """Return the figure of ranks by layer (report/ranks.py), or None."""
        path = self.path / RANK_FIGURE
        return path if path.is_file() else None

    def images_of(self, method: str, ablation: str) -> Path:
        """Return the folder of a row's images; in runs with several methods its name includes the ablation."""
        own = self.path / "images" / f"{method}-{ablation}"
        return own if own.is_dir() else self.path / "images" / method

    def references(self, role: str, name: str) -> list[Path]:
        """Return the reference images of a concept with role "content" or "style"."""
        return sorted((self.path / "references" / role / name).glob("*.png"))

    @cached_property
    def pictures(self) -> list[Picture]:
        """Return all scored images in the order of the scores."""
        key = ["method", "ablation", "label", "content", "style", "prompt", "seed", "image"]
        joint = joint_scores(self.scores)
        columns, _ = protocols.columns(protocols.ALL, joint)
        names = {(column.spec.metric, column.backbone): column.name for column in columns}
        nearest = joint["metric"].isin(protocols.NEAREST)
        of_images = [*key, "metric", "backbone"]
        means, greatest = (joint[chosen].groupby(of_images, sort=False)["value"] for chosen in (~nearest, nearest))
        reduced = pd.concat([means.mean(), greatest.max()]).reset_index()
        table = reduced.pivot_table("value", key, ["metric", "backbone"], sort=False)
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
    """Return run folders without duplicates; a folder of runs, as of a sweep, is replaced by its finished runs."""
    found: list[Path] = []
    for folder in folders:
        below = sorted(file.parent for file in folder.glob(f"*/{SCORES}"))
        found += [folder] if (folder / SCORES).is_file() or not below else below
    return list({folder.resolve(): folder for folder in found}.values())


def unfinished_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the runs in these folders of runs that `run_folders` leaves out, since they have no scores."""
    found: list[Path] = []
    for folder in folders:
        if not (folder / SCORES).is_file():
            below = sorted(path for path in folder.glob("*") if path.is_dir() and not (path / SCORES).is_file())
            found += [path for path in below if OutputFolder(path).is_unfinished]
    return found


def common_protocol(runs: list[RunFolder]) -> ProtocolSpec:
    """Return the protocol of all runs, or the one of all metrics if they differ."""
    found = [protocols.of_config(run.config) for run in runs]
    return found[0] if all(each == found[0] for each in found) else protocols.ALL
