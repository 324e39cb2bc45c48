"""Is the base model good enough to be a benchmark? Its pictures of seen classes and styles, read by the scorers.

Also the sample sheet of the model card. Writes evaluation.json and samples.png beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.models.sdxl.model import SDXL
from lorabench.sampling.sampler import sample
from lorabench.scoring.load import load_scorers
from lorabench.scoring.truth import load_truth

STEPS, GUIDANCE = 25, 3.0  # as in conf/config.yaml
EACH = 4  # pictures a class and domain


def prompts() -> list[tuple[str, str, str]]:
    """(prompt, class, family or "photo"): every class photographed and in every seen family."""
    photos = [(f"a photo of a {cls}", cls, "photo") for cls in mw.CLASSES]
    styled = [(f"a {cls} in {family} style", cls, family) for family in mw.SEEN_FAMILIES for cls in mw.CLASSES]
    return photos * EACH + styled


def evaluate(folder: Path, progress: Callable[[int], object] = lambda n: None) -> dict[str, float]:
    """Share of pictures whose class, family, and both, are read as asked for."""
    model = SDXL.load(folder)
    wanted = prompts()
    images = []
    for start in range(0, len(wanted), 24):
        part = wanted[start : start + 24]
        seeds = [seed_of("evaluate", text, start + k) for k, (text, _, _) in enumerate(part)]
        images.append(sample(model, [text for text, _, _ in part], seeds, STEPS, GUIDANCE).numpy())
        progress(len(part))
    pictures = np.concatenate(images)
    scorers = load_scorers()
    read = load_truth(scorers).read({scorer.name: scorer.embed(pictures) for scorer in scorers})
    right_class = np.array([seen == cls for seen, (_, cls, _) in zip(read["class"], wanted, strict=True)])
    right_family = np.array([seen == family for seen, (_, _, family) in zip(read["family"], wanted, strict=True)])
    figures = {
        "pictures": len(wanted),
        "class": float(right_class.mean()),
        "family": float(right_family.mean()),
        "both": float((right_class & right_family).mean()),
    }
    (folder.parent / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")
    columns = len(mw.CLASSES)
    shown = np.concatenate([pictures[:columns], pictures[EACH * columns :]])
    rows = [np.concatenate(list(shown[i : i + columns]), axis=1) for i in range(0, len(shown), columns)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(folder.parent / "samples.png")
    return figures
