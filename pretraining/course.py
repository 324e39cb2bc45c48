"""The course of a training, as its checkpoints record it: samples seen, and the samples at which a decay began."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lorabench.base import UserError

COURSE = "training.json"  # next to the folder of an exported pipeline


def course_of(checkpoint: Path) -> dict[str, int]:
    """Return the samples seen in total and at the last start, and for a decay its beginning and its length."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["course"]


def check_decay(branch: Path, samples: int, anneal: int) -> None:
    """Check that an earlier decay may be finished: it began at the current state and has the same length.

    Args:
        branch: Folder of the decay; nothing is checked if it has no checkpoint.
        samples: Samples that the training at constant rate has seen.
        anneal: Samples of the decay.

    Raises:
        UserError: If it is another decay, whose weights would be exported as those of this training.
    """
    if not (branch / "last.ckpt").is_file():
        return
    course = course_of(branch / "last.ckpt")
    begun, length = course["anneal_from"], course.get("anneal", anneal)
    if begun < samples or length != anneal:
        raise UserError(
            f"{branch} has a decay over {length} samples that began at {begun} samples, not over {anneal} at "
            f"{samples}; use --anneal {length} with that training, or remove the folder"
        )


def exported_samples(folder: Path) -> int | None:
    """Return the samples that an exported pipeline was trained on; None if no export wrote it."""
    try:
        return int(json.loads((folder.parent / COURSE).read_text())["samples"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
