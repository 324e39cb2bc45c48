"""All steps of a model that has no weights in the package: `python -m pretraining build`.

Finished steps are not repeated, and an interrupted step resumes, so the same command continues the work.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pretraining.course import check_decay, course_of
from pretraining.models import MODELS


def build(
    model: str,
    work: Path,
    samples: int,
    anneal: int,
    bank: Sequence[str],
    training: Sequence[str],
    devices: int,
    run: Callable[[list[str]], object],
) -> None:
    """Render the images, train at constant rate, decay the rate and export.

    The training starts from random weights, also if another training of the model was exported.

    Args:
        model: Name of the model.
        work: Folder of images and checkpoints.
        samples: Samples at constant rate.
        anneal: Samples of the decay.
        bank: Options of the step `bank`.
        training: Options of the step `denoiser`.
        devices: Number of devices that train.
        run: Function that runs a step in this process.

    Raises:
        UserError: If the folder has a decay of another training.
    """
    part = MODELS[model].part
    last, typed = work / part / "last.ckpt", ["--work", str(work)]
    begun = course_of(last)["samples"] if last.is_file() else 0
    check_decay(work / f"{part}-anneal", max(begun, samples), anneal)
    train = run if devices == 1 else run_alone
    denoiser = [*typed, "denoiser", "--model", model, *training]
    run([*typed, "bank", *bank])
    train([*denoiser, "--samples", str(samples), *(["--resume"] if last.is_file() else [])])
    train([*denoiser, "--anneal", str(anneal), "--resume"])
    run([*typed, "export", "--model", model])


def run_alone(typed: list[str]) -> None:
    """Run a step in a process of its own. Each further device repeats the command of this process, so it is one step.

    Raises:
        SystemExit: If the step fails; its process has printed the error.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process of the step ends as well
    try:
        done = subprocess.run([sys.executable, "-m", "pretraining", *typed], check=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    if done.returncode:
        sys.exit(done.returncode)
