"""A study on invented runs, and files of invented participants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose
from made_run import make_run

from lorabench.engine.output_folder import OutputFolder
from lorabench.tasks import study

SMALL = ["task.images=2", "questions=8", "task.repeats=2", "task.controls=2"]


def make_study(folder: Path, *overrides: str, methods: tuple[str, ...] = ("direct", "duolora")) -> Path:
    """Return the folder of a study of these methods; needs the fixture `hydra`."""
    runs = [make_run(folder / f"run{number}", name, images=2) for number, name in enumerate(methods)]
    listed = ",".join(map(str, runs))
    cfg = compose("config", ["task=study", f"runs=[{listed}]", *SMALL, *overrides])
    out = folder / "study"
    with OutputFolder(out).filled() as draft:
        assert study.run(cfg, draft) == "study.html"
    return out


def answer(out: Path, folder: Path, participant: str, choose: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Write the file of a participant who sees every item and control once, and the first item again.

    Args:
        choose: Returns "a" or "b" for an entry of the key.
    """
    key = json.loads((out / "key.json").read_text())
    names = list(key["items"])
    answers = []
    for number, (name, repeat) in enumerate([*((each, False) for each in names), (names[0], True)]):
        item = key["items"][name]
        choice = item["x"] == choose(item)
        answers.append(
            {"item": name, "choice": "x" if choice else "y", "left": "xy"[number % 2], "repeat": repeat, "seconds": 2.5}
        )
    own = {"study": key["study"], "seed": 0, "participant": participant, "answers": answers}
    folder.mkdir(exist_ok=True)
    (folder / f"answers-{participant}.json").write_text(json.dumps(own))
    return own
