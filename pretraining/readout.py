"""Fit the readout of ground truth: linear heads on the bank, and prototypes of named subjects and styles."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.scoring.cosine import normalize
from lorabench.scoring.description import ScorerFiles
from lorabench.scoring.load import load_scorer
from lorabench.scoring.scorer import Scorer
from lorabench.scoring.truth import CANDIDATES, CONTENT, PHOTO, STYLE
from pretraining.scorer_bank import STYLES, SUBJECTS, VIEWS, ScorerBank

HEAD_ROWS = (0, SUBJECTS // 2)  # rows per block: one subject of each class
PHOTOS_A_SUBJECT, DRAWINGS_A_SUBJECT, DRAWINGS_A_STYLE = 8, 24, 32


def subject_views(name: str) -> np.ndarray:
    """Return images [n, 64, 64, 3] of a named subject: photographs, and drawings in styles that are not held out."""
    rng = np.random.default_rng(seed_of("prototype of subject", name))
    views = [mw.render(mw.subject(name), None, mw.sample_pose(rng)) for _ in range(PHOTOS_A_SUBJECT)]
    for k in range(DRAWINGS_A_SUBJECT):
        look = mw.sample_style(rng, mw.FAMILIES[k % len(mw.FAMILIES)])
        views.append(mw.render(mw.subject(name), look, mw.sample_pose(rng)))
    return np.stack(views)


def style_views(name: str) -> np.ndarray:
    """Return images [n, 64, 64, 3] of a named style, of subjects of all classes that are not held out."""
    rng = np.random.default_rng(seed_of("prototype of style", name))
    subjects = [mw.sample_subject(rng, mw.CLASSES[k % len(mw.CLASSES)]) for k in range(DRAWINGS_A_STYLE)]
    return np.stack([mw.render(s, mw.style(name), mw.sample_pose(rng)) for s in subjects])


def fit_head(unit: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a logistic regression with a small ridge on unit rows [n, d]; return weight [classes, d], bias [classes]."""
    head = torch.nn.Linear(unit.shape[1], classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(unit), labels) + 1e-5 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.weight.detach(), head.bias.detach()


def prototypes(scorer: Scorer, role: str, views: Iterable[np.ndarray]) -> torch.Tensor:
    """Return the normalized mean embedding [m, d] of the images [n, 64, 64, 3] of each individual."""
    return torch.cat([normalize(scorer.embed(images)[role].mean(0, keepdim=True)) for images in views])


def fit_readout(root: Path, bank: ScorerBank) -> None:
    """Fit the readout for the dino and csd scorers in `root` and write root/truth/."""
    from safetensors.torch import save_file

    dino, csd = (load_scorer(ScorerFiles.of(root / kind)) for kind in ("dino", "csd"))
    images = np.concatenate([bank.pixels[:, i].reshape(-1, *bank.shape[3:]) for i in HEAD_ROWS])
    classes, families = [], []
    for i in HEAD_ROWS:
        for b in range(bank.blocks):
            for view in range(VIEWS):
                classes.append(mw.CLASSES.index(bank.factors[b].subjects[i].cls))
                look = bank.factors[b].styles[view].family if view < STYLES else None
                families.append(mw.FAMILIES.index(look) if look else len(mw.FAMILIES))
    content, style = dino.embed(images)[CONTENT[1]], csd.embed(images)[STYLE[1]]
    tensors = {}
    for role, unit, labels, count in (
        ("content", content, classes, len(mw.CLASSES)),
        ("style", style, families, len(mw.FAMILIES) + 1),
    ):
        tensors[f"{role}.weight"], tensors[f"{role}.bias"] = fit_head(unit, torch.tensor(labels), count)
    subjects, styles = ([*chain(*names)] for names in zip(*CANDIDATES.values(), strict=True))
    tensors["content.prototypes"] = prototypes(dino, CONTENT[1], map(subject_views, subjects))
    tensors["style.prototypes"] = prototypes(csd, STYLE[1], map(style_views, styles))
    folder = root / "truth"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    config = {
        "made_for": {"world": mw.VERSION, dino.name: dino.version, csd.name: csd.version},
        "content": {"labels": list(mw.CLASSES), "names": subjects},
        "style": {"labels": [*mw.FAMILIES, PHOTO], "names": styles},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
