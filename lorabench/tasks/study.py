"""task=study: a page on which people choose between images of finished runs.

    python run.py task=study runs=[outputs/a,outputs/b] questions=30

Writes study.html for the participants and key.json, which they must not get: it has the method of each image and the
known answers. `task=study_results` reads the files that participants send back.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lorabench.base import UserError, seed_of
from lorabench.engine.record import key_of, sha256
from lorabench.report.study_page import Choice, Study, render
from lorabench.report.verdicts import CONTROL
from lorabench.tasks.contests import Contest, Gallery

PAGE, KEY = "study.html", "key.json"


def run(cfg: DictConfig, folder: Path) -> str:
    """Write the page and its key.

    Raises:
        UserError: If the runs have too few comparisons for the questions.
    """
    task = cfg.task
    contests = Gallery.load(cfg.runs, task.images, task.baselines).contests(list(task.ask))
    every = [(contest, question) for contest in contests for question in contest.questions]
    items = evenly([each for each in every if each[0].kind != CONTROL], task.pool, cfg.seed)
    checks = evenly([each for each in every if each[0].kind == CONTROL], task.pool, cfg.seed)
    check_counts(cfg, len(items), len(checks))
    choices, known = {}, {}
    for number, (contest, question) in enumerate([*items, *checks], 1):
        name = f"q{number}"
        choices[name], known[name] = blinded(name, contest, question, cfg.seed)
    key = {"seed": cfg.seed, "questions": cfg.questions, "repeats": task.repeats, "controls": task.controls}
    key |= {"items": known}
    study = key_of("study", key)[:16]
    split = list(choices.values())
    page = Study(
        study, cfg.seed, cfg.questions, task.repeats, task.controls, split[: len(items)], split[len(items) :]
    )  # fmt: skip
    (folder / PAGE).write_text(render(page), encoding="utf-8")
    (folder / KEY).write_text(json.dumps({"study": study, **key}, indent=1), encoding="utf-8")
    print(f"{len(items)} comparisons and {len(checks)} controls; {cfg.questions} questions per participant")
    print(f"Send {PAGE} to participants and keep {KEY}. With their files: run.py task=study_results answers=<folder>")
    return PAGE


def evenly(pool: Sequence[tuple[Contest, str]], most: int, seed: int) -> list[tuple[Contest, str]]:
    """Return at most `most` comparisons in random order, with all questions about every two rows equally often."""
    draw = random.Random(seed_of("study", seed))
    groups: dict[tuple[str, str, str], list[tuple[Contest, str]]] = {}
    for contest, question in draw.sample(list(pool), len(pool)):
        groups.setdefault((contest.a, contest.b, question), []).append((contest, question))
    turns = chain.from_iterable(zip_longest(*groups.values()))
    chosen = [each for each in turns if each is not None][:most]
    draw.shuffle(chosen)
    return chosen


def check_counts(cfg: DictConfig, items: int, checks: int) -> None:
    """Check that there are enough comparisons.

    Raises:
        UserError: If there are not.
    """
    task, questions = cfg.task, cfg.questions
    if questions is None:
        raise UserError("questions has no value; use questions=30")
    if task.controls > checks:
        raise UserError(
            f"task.controls={task.controls} must be at most {checks} for these runs; use task.controls={checks}"
        )
    own = questions - task.repeats - task.controls
    if own < 1:
        least = task.repeats + task.controls + 1
        raise UserError(
            f"questions={questions} must be at least {least}, for repeats and controls; use questions={least}"
        )
    if own > items:
        most = items + task.repeats + task.controls
        raise UserError(
            f"questions={questions} needs {own} comparisons, and there are {items}; use questions={most}, more runs or "
            "more task.images"
        )
    if task.repeats > own // 2:
        raise UserError(f"task.repeats={task.repeats} must be at most {own // 2}; use task.repeats={own // 2}")


def blinded(name: str, contest: Contest, question: str, seed: int) -> tuple[Choice, dict[str, Any]]:
    """Return the entries of a comparison in the page and in the key; x is row a or row b at random."""
    images = contest.item.images
    swapped = seed_of("study side", seed, question, *(sha256(path) for path in images)) % 2 == 1
    x, y = images[::-1] if swapped else images
    about = {"question": question, "a": contest.a, "b": contest.b, "kind": contest.kind, "expected": contest.expected}
    return Choice(name, question, x, y, contest.item.references), {
        **contest.keys,
        **about,
        "x": "b" if swapped else "a",
    }
