"""The user study: content of the page, and results of the participants' files."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose
from study_runs import answer, make_study

from lorabench.base import UserError
from lorabench.report import papers
from lorabench.report.agreement import alpha, participants
from lorabench.report.verdicts import COLUMNS
from lorabench.tasks import study_results
from lorabench.tasks.study_results import read_answers

pytestmark = pytest.mark.usefixtures("hydra")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return make_study(tmp_path)


def results(out: Path, folder: Path, answers: Path, *overrides: str) -> str:
    folder.mkdir(exist_ok=True)
    cfg = compose("config", ["task=study_results", f"study={out}", f"answers={answers}", *overrides])
    return (folder / study_results.run(cfg, folder)).read_text()


def test_page_is_blind_and_self_contained(out: Path) -> None:
    page = (out / "study.html").read_text()
    key = json.loads((out / "key.json").read_text())
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert data and not [name for name in ("direct", "duolora", "oracle", "content_only", "mug_1") if name in data]
    assert "duolora" not in page and str(out.parent) not in page
    assert "default-src &#39;none&#39;" in page and "http" not in page.replace("http-equiv", "")
    kinds = Counter(each["kind"] for each in key["items"].values())
    assert kinds == {"item": 8, "control": 8 * 3}
    assert {each["x"] for each in key["items"].values()} == {"a", "b"}  # sides are mixed
    assert all(
        (each["a"], each["b"]) == ("direct", "duolora") for each in key["items"].values() if each["kind"] == "item"
    )


def test_study_follows_from_seed(tmp_path: Path) -> None:
    keys = [
        (make_study(tmp_path / name, f"seed={seed}") / "key.json").read_text()
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_items_are_spread_over_rows_and_questions(tmp_path: Path) -> None:
    out = make_study(tmp_path, "task.pool=18", "task.ask=[subject,both]", methods=("direct", "duolora", "ties"))
    items = [each for each in json.loads((out / "key.json").read_text())["items"].values() if each["kind"] == "item"]
    counts = Counter((each["a"], each["b"], each["question"]) for each in items)
    assert len(counts) == 6 and set(counts.values()) == {3}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["questions=40"], "questions=40 needs 36 comparisons, and there are 8; use questions=12"),
        (["questions=4"], "questions=4 must be at least 5"),
        (["task.controls=30"], "task.controls=30 must be at most 24 for these runs; use task.controls=24"),
        (["questions=6"], "task.repeats=2 must be at most 1; use task.repeats=1"),
    ],
)
def test_too_few_comparisons_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_study(tmp_path, *overrides)


def test_results_of_people(out: Path, tmp_path: Path) -> None:
    """Two like duolora, one likes it in half of the pairs, one fails the controls and likes direct."""
    answers = tmp_path / "answers"
    for name in ("p1", "p2"):
        answer(out, answers, name, lambda item: item["expected"] or "b")
    answer(out, answers, "p3", lambda item: item["expected"] or "ba"[item["content"] == "mug_1"])
    answer(out, answers, "careless", lambda item: "b" if item["expected"] else "a")
    text = results(out, tmp_path / "results", answers)
    verdicts = pd.read_parquet(tmp_path / "results" / "verdicts.parquet")
    assert list(verdicts) == COLUMNS and len(verdicts) == 4 * (8 + 24 + 1)
    assert Counter(verdicts["kind"]) == {"item": 32, "control": 96, "repeat": 4}
    assert "User study, 3 participants, 99 answers" in text
    # 20 of 24 answers are for duolora: every one of two pairs, two in three of the other two
    assert "| direct | duolora | 4 | 0 | 20 | 0 | 0.17 [" in text and "| 1 | duolora |" in text
    assert "Right on controls, whose answer is known: both 72 of 72 (1.00)" in text
    assert "fewer than 75% of the controls right: careless" in text and "| careless | 33 | 0 of 24 | 1 of 1 |" in text
    for printed in ("| DuoLoRA | preferred 50 |", "| B-LoRA | decomposition 62.74", "| Ours | content 82.5, style 85"):
        assert printed in text
    everyone = results(out, tmp_path / "all", answers, "task.passes=0")
    assert "4 participants" in everyone and "| direct | duolora | 12 | 0 | 20 | 0 |" in everyone


def test_alpha_is_krippendorffs() -> None:
    """Against the definition: 1 - observed / expected disagreement, over pairs of answers to one comparison."""
    rng = np.random.default_rng(0)
    rows = [
        {"rater": f"p{p}", "answer": "ab"[int(rng.random() < 0.3 + 0.05 * item)], "kind": "item", "content": f"c{item}"}
        for item in range(10)
        for p in range(5)
        if rng.random() < 0.8
    ]
    rest = {"dataset": "d", "world": "1", "style": "s", "prompt": "p", "seed": 0, "image": 0, "question": "both"}
    found = pd.DataFrame(rows).assign(**rest, a="x", b="y")
    units = [own["answer"].tolist() for _, own in found.groupby("content") if len(own) > 1]
    values = [value for unit in units for value in unit]
    observed = sum(2 * sum(p != q for p, q in combinations(unit, 2)) / (len(unit) - 1) for unit in units) / len(values)
    expected = 2 * values.count("a") * values.count("b") / (len(values) * (len(values) - 1))
    assert alpha(found) == pytest.approx(1 - observed / expected)
    assert alpha(found.assign(answer="a")) is None
    assert alpha(found[found["rater"] == "p1"]) is None and alpha(found[:0]) is None


def test_participants_are_described(out: Path, tmp_path: Path) -> None:
    answer(out, tmp_path / "answers", "p1", lambda item: "a")
    key = json.loads((out / "key.json").read_text())
    [own] = read_answers(str(tmp_path / "answers"), key).values()
    verdicts = pd.DataFrame(study_results.lines_of(own, key), columns=COLUMNS)
    [line] = participants(verdicts, 0.75).to_dict("records")
    assert (line["right"], line["controls"], line["same"], line["repeats"]) == (24, 24, 1, 1)
    left = [key["items"][each["item"]]["x"] == ("a" if each["left"] == "x" else "b") for each in own["answers"]]
    assert line["left"] == pytest.approx(np.mean(left)) and line["seconds"] == 2.5 and line["passed"]


def test_broken_or_foreign_files_are_refused(out: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    own = answer(out, answers, "p1", lambda item: "a")

    def refused(words: str, text: str, name: str = "x.json") -> None:
        (answers / name).write_text(text)
        with pytest.raises(UserError, match=words):
            results(out, tmp_path / "results", answers)
        (answers / name).unlink()

    refused("x.json is not a file of answers", "{")
    refused("x.json is not a file of answers", json.dumps({**own, "answers": [{"item": "q1", "choice": "z"}]}))
    refused("x.json is not a file of answers", json.dumps({**own, "answers": own["answers"][:1] * 2}))
    refused("x.json belongs to another study", json.dumps({**own, "study": "other"}))
    refused("x.json is a second file of participant p1", json.dumps({**own, "answers": own["answers"][:3]}))
    (answers / "copy.json").write_text(json.dumps(own))  # twice the same
    assert "User study, 1 participants" in results(out, tmp_path / "results", answers)
    with pytest.raises(UserError, match="must be a folder with the participants'"):
        results(out, tmp_path / "results", tmp_path / "nowhere")
    with pytest.raises(UserError, match="use study=<folder of task=study>"):
        results(tmp_path, tmp_path / "results", answers)


def test_study_without_passing_participant_is_error(out: Path, tmp_path: Path) -> None:
    answer(out, tmp_path / "answers", "p1", lambda item: "b")
    with pytest.raises(UserError, match=r"use task.passes=0"):
        results(out, tmp_path / "results", tmp_path / "answers")


def test_published_studies_are_those_of_people() -> None:
    marked = {(name, table.name) for name, paper in papers.papers().items() for table in paper.tables if table.study}
    assert {("duolora", "user study"), ("unziplora", "user preference"), ("craft", "6c")} <= marked
