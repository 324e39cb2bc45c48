"""The page of a user study: one HTML file that works from disk, makes no request and does not name the methods.

The page chooses a participant's questions itself (web/study.js), from the seed and the participant's code. The
method of each image is only in the key of the study, which the participants do not get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lorabench.report.embed import embed
from lorabench.report.page import WEB, in_script, policy, template
from lorabench.report.verdict_text import ASKED

SECONDS = 10  # per question, for the estimate on the first screen


@dataclass(frozen=True)
class Choice:
    """Two images to choose from, in no meaningful order.

    Args:
        id: Name in the page and in the files of answers.
        references: The subject and the style.
    """

    id: str
    question: str
    x: Path
    y: Path
    references: tuple[Path, Path]


@dataclass(frozen=True)
class Study:
    """Everything that the page needs.

    Args:
        id: Hash of the study's key.
        questions: Number of questions per participant, with repeats and controls.
        items, checks: Choices, and those whose answer is known.
    """

    id: str
    seed: int
    questions: int
    repeats: int
    controls: int
    items: Sequence[Choice]
    checks: Sequence[Choice]


def render(study: Study) -> str:
    """Return the page."""
    embedded = embed(path for each in (*study.items, *study.checks) for path in (each.x, each.y, *each.references))

    def shown(choice: Choice) -> Mapping[str, Any]:
        subject, style = (embedded.at[path] for path in choice.references)
        about = {"id": choice.id, "question": choice.question, "subject": subject, "style": style}
        return {**about, "x": embedded.at[choice.x], "y": embedded.at[choice.y]}

    data = {
        "study": study.id, "seed": study.seed, "questions": study.questions, "repeats": study.repeats,
        "controls": study.controls, "ask": ASKED, "items": [shown(each) for each in study.items],
        "checks": [shown(each) for each in study.checks],
    }  # fmt: skip
    style, script = ((WEB / f"study.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
    return template("study.html.j2").render(
        questions=study.questions,
        minutes=ceil(study.questions * SECONDS / 60),
        data=in_script(data),
        pictures=Markup("\n".join(embedded.texts)),  # base64 and a fixed prefix: neither can end a script block
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )
