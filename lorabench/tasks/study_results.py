"""task=study_results: the choices of the participants of a study.

    python run.py task=study_results answers=<folder of their files>

Writes verdicts.parquet (the table of judges, with people as raters), participants.csv and study_results.md.
Participants with too few right controls (`task.passes`) stay in the files and are left out of the results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from lorabench.base import UserError
from lorabench.report.agreement import check_library, participants
from lorabench.report.study_text import write_results
from lorabench.report.verdicts import COLUMNS, FILE, ITEM, KEYS, REPEAT
from lorabench.tasks.study import KEY

PAGE = "study_results.md"


def run(cfg: DictConfig, folder: Path) -> str:
    """Write and print the results.

    Raises:
        UserError: If a file is missing, broken or of another study.
    """
    check_library()
    key = read_key(Path(cfg.study))
    verdicts = pd.DataFrame(
        [line for own in read_answers(cfg.answers, key).values() for line in lines_of(own, key)], columns=COLUMNS
    )
    people = participants(verdicts, cfg.task.passes)
    if not people["passed"].to_numpy().any():
        least = f"{cfg.task.passes:.0%}"
        raise UserError(f"no participant is right on {least} of the controls; use task.passes=0 to keep all of them")
    verdicts.to_parquet(folder / FILE, index=False)
    people.to_csv(folder / "participants.csv", index=False)
    text = write_results(verdicts, people, cfg.task.passes)
    (folder / PAGE).write_text(text, encoding="utf-8")
    print(text)
    return PAGE


def read_key(study: Path) -> dict[str, Any]:
    """Return the key of a study.

    Raises:
        UserError: If there is none.
    """
    try:
        return json.loads((study / KEY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{study / KEY} cannot be read; use study=<folder of task=study>") from error


def read_answers(place: str | None, key: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the files of a folder by participant; a file that is there twice counts once.

    Raises:
        UserError: If there are none, or one is broken, of another study, or of a participant with two files.
    """
    files = sorted(Path(place).glob("*.json")) if place else []
    if not files:
        raise UserError(f"answers={place} must be a folder with the participants' .json files; use answers=<folder>")
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        own = read_file(file, key)
        name = own["participant"]
        if found.setdefault(name, own) != own:
            raise UserError(f"{file} is a second file of participant {name}; remove one of them")
    return found


def read_file(file: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answers of one participant."""
    try:
        own = json.loads(file.read_text(encoding="utf-8"))
        study, answers, _ = own["study"], own["answers"], str(own["participant"])
        for each in answers:
            if not (each["choice"] in ("x", "y") and each["left"] in ("x", "y") and float(each["seconds"]) >= 0):
                raise ValueError(each)
        if len({(str(each["item"]), bool(each["repeat"])) for each in answers}) < len(answers) or not answers:
            raise ValueError("an answer is there twice, or none is there")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file} is not a file of answers; remove it") from error
    if study != key["study"] or any(each["item"] not in key["items"] for each in answers):
        raise UserError(f"{file} belongs to another study; remove it, or use study=<folder of that study>")
    return own


def lines_of(own: Mapping[str, Any], key: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """Return the rows of `lorabench.report.verdicts` of one participant."""
    lines = []
    for each in own["answers"]:
        item = key["items"][each["item"]]
        row_of = {"x": item["x"], "y": "b" if item["x"] == "a" else "a"}
        kind = REPEAT if each["repeat"] and item["kind"] == ITEM else item["kind"]
        raw = {"left": row_of[each["left"]], "seconds": each["seconds"]}
        lines.append(
            {
                **{name: item[name] for name in (*KEYS, "question", "a", "b", "expected")}, "kind": kind,
                "answer": row_of[each["choice"]], "source": "person", "rater": own["participant"], "prompt_hash": "",
                "raw": json.dumps(raw),
            }
        )  # fmt: skip
    return lines
