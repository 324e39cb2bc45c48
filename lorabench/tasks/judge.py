"""task=judge: compare the images of finished runs; judge=... with a benchmark: judge its own run folder at the end.

    python run.py task=judge runs=[outputs/a,outputs/b] judge=truth
    python run.py task=compare task.rows=[direct,duolora] judge=truth

Writes verdicts.parquet and verdicts.md, and ratings.parquet for protocols that rate single images. Answers
are artifacts of the store, found by the judge and the hashes of the images and of the questions, so nothing is asked
twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.judging import JudgeSpec, OpenAIJudgeSpec, TransformersJudgeSpec, TruthJudgeSpec
from lorabench.engine.artifact import Artifact
from lorabench.engine.devices import device_name
from lorabench.engine.make import make
from lorabench.engine.output_folder import MANIFEST, OutputFolder
from lorabench.engine.store import Store
from lorabench.scoring.judges.build import build
from lorabench.scoring.judges.questions import questions
from lorabench.tasks.contests import Contest, Gallery
from lorabench.tasks.judging import Judging

PAGE = "verdicts.md"
KEYS = "verdict_keys"  # key of the manifest: artifacts that the store must keep


def run(cfg: DictConfig, folder: Path) -> str:
    """Judge the runs of `runs` and print the page."""
    judge_folders(cfg, cfg.runs, folder)
    print((folder / PAGE).read_text())
    return PAGE


def judge_run(cfg: DictConfig, folder: Path) -> None:
    """Judge a finished run in its own folder and print the page."""
    with OutputFolder(folder).filled(keep=True) as draft:
        judge_folders(cfg, [str(folder)], draft)
    print((folder / PAGE).read_text())
    print(folder / PAGE)


def check_judge(cfg: DictConfig) -> None:
    """Check the settings of the judge before long work starts.

    Raises:
        UserError: If it cannot judge the run.
    """
    spec: Any = OmegaConf.to_object(cfg.judge)
    if isinstance(spec, TruthJudgeSpec):
        check_world(cfg.dataset.name)
    if cfg.task.name == "benchmark" and not spec.baselines:
        raise UserError(
            f"judge={spec.kind} compares two rows, and a benchmark has one method; use judge.baselines=true, "
            "task=compare, or task=judge runs=[<run>,<run>] afterwards"
        )
    if not isinstance(spec, TruthJudgeSpec):
        build(spec, device_of(cfg, spec))


def judge_folders(cfg: DictConfig, folders: Sequence[str] | None, out: Path) -> None:
    """Write the verdicts on the images of some runs into a folder.

    Raises:
        UserError: If the runs cannot be compared, or the judge cannot answer.
    """
    spec: Any = OmegaConf.to_object(cfg.judge)
    judge = build(spec, device_of(cfg, spec))
    gallery = Gallery.load(folders, spec.images, spec.baselines)
    if isinstance(spec, TruthJudgeSpec):
        check_world(gallery.runs[0].manifest["dataset"])
    contests = gallery.contests(questions(spec.protocol))
    judging = Judging(Store.open(Path(cfg.store)), judge, spec.protocol, votes_of(spec))
    artifacts = judging.artifacts(contests)
    trainer: Any = OmegaConf.to_object(cfg.trainer)
    accelerator = trainer.accelerator if isinstance(spec, TransformersJudgeSpec) else "cpu"
    # One process: a model is loaded once, and requests keep the pace that the endpoint allows.
    make(judging.store, replace(trainer, accelerator=accelerator, workers=0, devices=0, nodes=1), artifacts)
    write(judging, contests, artifacts, out)


def write(judging: Judging, contests: Sequence[Contest], artifacts: Sequence[Artifact], out: Path) -> None:
    """Write all files of a judgment."""
    from lorabench.report.ratings import RATINGS, rating_lines
    from lorabench.report.verdict_text import write_verdicts
    from lorabench.report.verdicts import FILE

    verdicts = judging.verdicts(contests)
    verdicts.to_parquet(out / FILE, index=False)
    notes = [f"Judge: {json.dumps(judging.judge.identity())}. Questions: {judging.prompt_hash}."]
    if judging.protocol != "pairwise":
        ratings = judging.ratings(contests)
        ratings.to_parquet(out / RATINGS, index=False)
        notes = ["\n".join(rating_lines(ratings, judging.protocol)), *notes]
    text = write_verdicts(verdicts, f"{judging.judge.name}, protocol {judging.protocol}", notes)
    (out / PAGE).write_text(text, encoding="utf-8")
    keys = sorted({each.key for each in artifacts})
    (out / MANIFEST).write_text(json.dumps({KEYS: keys}))


def check_world(dataset: str) -> None:
    """Check that the truth is known.

    Raises:
        UserError: If it is not.
    """
    if dataset != "microworld":
        raise UserError(f"judge=truth knows the images of dataset=microworld only, not of {dataset}; use judge=openai")


def votes_of(spec: JudgeSpec) -> int:
    """Return the number of votes about a single image."""
    return spec.votes if isinstance(spec, OpenAIJudgeSpec) and spec.protocol != "pairwise" else 1


def device_of(cfg: DictConfig, spec: JudgeSpec) -> str:
    """Return the device of the judge."""
    return device_name(cfg.trainer.accelerator) if isinstance(spec, TransformersJudgeSpec) else "cpu"
