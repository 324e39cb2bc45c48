"""Judges: how answers are read, the ground truth's accuracy, a judge that prefers a position, and stored answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_run import PAIRS, make_run

from benchmarks.truth_judge import count
from lorabench.base import UserError
from lorabench.config.judging import TruthJudgeSpec
from lorabench.data import microworld as mw
from lorabench.data.microworld_pairs import render
from lorabench.engine.artifact import batches
from lorabench.engine.job import Make
from lorabench.engine.store import Store
from lorabench.report.verdict_text import write_verdicts
from lorabench.report.verdicts import COLUMNS, accuracy, shares
from lorabench.scoring.judges.answers import both_orders, parse, ratings
from lorabench.scoring.judges.build import build
from lorabench.scoring.judges.comparison import Comparison
from lorabench.scoring.judges.questions import Ask, Item, asks, prompt_hash, questions
from lorabench.tasks.contests import Contest, Gallery
from lorabench.tasks.judging import Judging

QUALITY = {"base": 0, "content_only": 1, "style_only": 1, "direct": 2, "duolora": 3, "oracle": 4}


@dataclass
class Fake(Comparison):
    """A judge that answers by the row whose folder an image is in, or always A."""

    biased: bool = False
    parallel: int = 1
    broken: str = ""  # text instead of an answer to the question "style"
    fails_after: int = 10**9
    asked: list[Ask] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "fake"

    def identity(self) -> dict[str, Any]:
        return {"kind": "fake", "biased": self.biased, "broken": self.broken}

    def answer(self, ask: Ask) -> str:
        if len(self.asked) >= self.fails_after:
            raise UserError("the fake is tired")
        self.asked.append(ask)
        if self.broken and ask.question == "style":
            return self.broken
        values = [QUALITY[path.parents[1].name] for path in ask.images]
        if len(values) == 1:
            return "YES" if values[0] > 1 else "NO"
        return json.dumps({"answer": "A" if self.biased or values[0] > values[1] else "B"})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / method, method, images=2) for method in ("direct", "duolora")]


def judged(
    judge: Comparison, runs: list[Path], store: Path, protocol: str = "pairwise"
) -> tuple[Judging, list[Contest]]:
    contests = Gallery.load([str(run) for run in runs], 2, False).contests(questions(protocol))
    judging = Judging(Store.open(store), judge, protocol)
    for several in batches(judging.artifacts(contests)):
        Make(judging.store, several)(lambda done: None)
    return judging, contests


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ('{"answer": "A"}', "A"),
        ('```json\n{"answer": "tie"}\n```', "TIE"),
        ('Image A keeps the handle.\n{"answer": "B"}', "B"),
        ("Both are close.\n**Answer: A**", "A"),
        ("B.", "B"),
        ("I prefer image B", None),
        ("A or B", None),
        ('{"answer": "C"}', None),
        ('{"answer": ["A"]}', None),
        ('{"verdict": "A"}', None),
        ("", None),
    ],
)
def test_parse_takes_only_final_answer(text: str, token: str | None) -> None:
    assert parse(text, ("A", "B", "TIE")) == token


def test_answers_that_disagree_are_tie() -> None:
    cases = {("A", "B"): "a", ("B", "A"): "b", ("A", "A"): "tie", ("B", "B"): "tie", ("TIE", "A"): "tie"}
    assert {pair: both_orders(*pair) for pair in cases} == cases
    assert both_orders("A", "no idea") == "invalid"


def test_ratings_are_read_by_protocol() -> None:
    assert ratings("rubric", ['{"answer": 3}', "Score: 0", "5", "about 4"]) == [3.0, 0.0, None, None]
    assert ratings("combination", ['{"answer": "yes"}', "NO", '{"answer": true}']) == [1.0, 0.0, None]
    item = Item((Path("1.png"),), (Path("s.png"), Path("t.png")), ("mug_1", "ink_1"))
    assert len(asks("combination", item, "both", 50)) == 50
    shown = [
        [part.name for part in asks("rubric", item, name)[0].parts if isinstance(part, Path)]
        for name in ("subject", "style")
    ]
    assert shown == [["s.png", "1.png"], ["t.png", "1.png"]]  # one reference each


def test_models_see_no_names() -> None:
    item = Item((Path("1.png"), Path("2.png")), (Path("s.png"), Path("t.png")), ("mug_1", "ink_1"))
    for protocol in ("pairwise", "combination", "rubric"):
        one = item if protocol == "pairwise" else replace(item, images=item.images[:1])
        for question in questions(protocol):
            texts = " ".join(str(part) for ask in asks(protocol, one, question) for part in ask.parts)
            assert "mug" not in texts and "ink_1" not in texts
    assert len({prompt_hash(protocol) for protocol in ("pairwise", "combination", "rubric")}) == 3


def test_judge_by_quality_is_right_and_ranks(runs: list[Path], tmp_path: Path) -> None:
    judging, contests = judged(Fake(), runs, tmp_path)
    verdicts = judging.verdicts(contests)
    assert list(verdicts) == COLUMNS and len(verdicts) == 8 * 3 + 8 * (3 + 2 + 2)
    assert accuracy(verdicts)["share"].tolist() == [1.0, 1.0, 1.0]
    assert shares(verdicts)[["a", "b", "share"]].values.tolist() == [["direct", "duolora", 0.0]] * 3
    page = write_verdicts(verdicts, "fake", [])
    assert "both 24 of 24 (1.00)" in page and "| 1 | duolora |" in page and "| direct | duolora | 0 | 0 | 8 |" in page


def test_judge_that_prefers_position_has_ties_only(runs: list[Path], tmp_path: Path) -> None:
    judging, contests = judged(Fake(biased=True), runs, tmp_path)
    verdicts = judging.verdicts(contests)
    assert set(verdicts["answer"]) == {"tie"} and accuracy(verdicts)["right"].sum() == 0
    page = write_verdicts(verdicts, "fake", [])
    assert "shown first won 160 of 160 answers without a tie (100%)" in page
    assert "in 80 of 80 cases the answer followed the position" in page
    assert "| direct | duolora | 0 | 8 | 0 | 0 | 0.50 [0.50, 0.50] | 0.00 |" in page


def test_invalid_answers_are_counted_and_in_no_share(runs: list[Path], tmp_path: Path) -> None:
    judging, contests = judged(Fake(broken="I cannot say"), runs, tmp_path)
    verdicts = judging.verdicts(contests)
    table = shares(verdicts).set_index("question")
    assert table.loc["style", "invalid"] == 8 and np.isnan(table.loc["style", "share"])
    assert table.loc["both", "losses"] == 8 and accuracy(verdicts).loc["style", "right"] == 0
    page = write_verdicts(verdicts, "fake", [])
    assert "24 of 80 verdicts are invalid" in page and "| direct | duolora | 0 | 0 | 0 | 8 |  | 0.00 |" in page


def test_nothing_is_asked_twice(runs: list[Path], tmp_path: Path) -> None:
    first = Fake()
    judged(first, runs, tmp_path)
    again, swapped = Fake(), Fake()
    judged(again, runs, tmp_path)
    judging, contests = judged(swapped, runs[::-1], tmp_path)
    assert len(first.asked) == 2 * 80 and not again.asked and not swapped.asked
    assert shares(judging.verdicts(contests))[["a", "b", "share"]].values.tolist() == [["duolora", "direct", 1.0]] * 3


@pytest.mark.parametrize("parallel", [1, 3])
def test_failed_judge_resumes_with_its_answers(runs: list[Path], tmp_path: Path, parallel: int) -> None:
    tired = Fake(fails_after=31, parallel=parallel)
    with pytest.raises(UserError, match="tired"):
        judged(tired, runs, tmp_path)
    rested = Fake(parallel=parallel)
    judged(rested, runs, tmp_path)
    assert len(tired.asked) == 31 and len(tired.asked) + len(rested.asked) == 160


def test_single_images_are_rated_and_compared(runs: list[Path], tmp_path: Path) -> None:
    judge = Fake()
    judging, contests = judged(judge, runs, tmp_path, "combination")
    verdicts, ratings = judging.verdicts(contests), judging.ratings(contests)
    assert len(judge.asked) == 8 * 6  # each image once, though the oracle is in three controls
    assert ratings.groupby("label")["value"].mean().to_dict() == {
        "base": 0, "content_only": 0, "style_only": 0, "direct": 1, "duolora": 1, "oracle": 1,
    }  # fmt: skip
    assert set(verdicts["question"]) == {"both"} and accuracy(verdicts)["share"].tolist() == [1.0]
    assert set(verdicts.loc[verdicts["kind"] == "item", "answer"]) == {"tie"}


def test_runs_without_oracle_have_references_as_controls(tmp_path: Path) -> None:
    runs = [
        str(make_run(tmp_path / name, name, pairs=PAIRS[:1], images=1, oracle=False)) for name in ("direct", "ties")
    ]
    controls = [each for each in Gallery.load(runs, 1, False).contests(questions("pairwise")) if each.kind == "control"]
    assert [(each.a, each.b, each.questions) for each in controls] == [
        ("reference", "base", ("subject",)), ("reference", "base", ("style",)),
    ]  # fmt: skip
    assert all(each.item.images[0].parent.parent.parent.name == "references" for each in controls)
    assert all(each.item.images[0] not in each.item.references for each in controls)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    run = str(make_run(tmp_path / "run", images=1))
    with pytest.raises(UserError, match=r"needs two table rows, and runs has duolora; use judge.baselines=true"):
        Gallery.load([run], 1, False)
    assert len(Gallery.load([run], 1, True).rows) == 5
    with pytest.raises(UserError, match=r"runs is empty; use runs="):
        Gallery.load(None, 1, False)


@pytest.fixture(scope="module")
def truth() -> Comparison:
    return build(TruthJudgeSpec(kind="truth", renders=8, margin=0.05), "cpu")


def test_truth_recognizes_subject_and_style(truth: Comparison, tmp_path: Path) -> None:
    """Against any others all are right; against others of the same class and family some are ties, none is wrong."""
    found = count(truth, 4, tmp_path)
    assert all(found["any other", question]["right"] == 4 for question in questions("pairwise"))
    assert all(found["same class or family", question]["right"] >= 3 for question in questions("pairwise"))
    assert all(found["itself in another pose", question]["tie"] >= 3 for question in questions("pairwise"))
    assert sum(found["same class or family", question]["wrong"] for question in questions("pairwise")) == 0


def test_truth_calls_equal_images_tie_and_rates_single_ones(truth: Comparison, tmp_path: Path) -> None:
    names = ("mug_1", "ink_1")
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    render(mw.subject("mug_1"), mw.style("ink_1"), 5).save(good)
    render(mw.subject("fish_3"), mw.style("neon_1"), 5).save(bad)
    item = Item((good, good), (good, good), names)
    assert both_orders(*(truth.answer(ask) for ask in asks("pairwise", item, "both"))) == "tie"
    for path, expected in ((good, ["YES", "4", "4"]), (bad, ["NO", "0", "0"])):
        one = replace(item, images=(path,))
        every = [*asks("combination", one, "both"), *asks("rubric", one, "subject"), *asks("rubric", one, "style")]
        assert [json.loads(truth.answer(ask))["answer"] for ask in every] == expected
    with pytest.raises(UserError, match="knows one subject in one style"):
        truth.answer(asks("combination", replace(one, names=("mug_1+cat_1", "ink_1")), "both")[0])


@pytest.mark.slow
def test_task_and_run_share_answers(tiny, tmp_path: Path, commands) -> None:
    """A whole run with a judge, then task=judge on its folder, which asks nothing again."""
    small = [
        *tiny, f"output={tmp_path}", "dataset.subjects=[mug_1]", "dataset.styles=[ink_1,neon_1]", "judge=truth",
        "dataset.references=2", "dataset.content_images=1", "dataset.style_images=1", "judge.images=1",
    ]  # fmt: skip
    refused = commands.run("method=direct", *small)
    assert refused.returncode == 2 and "use judge.baselines=true" in refused.stderr
    assert not list(tmp_path.glob("store/personalize"))
    done = commands.run("task=compare", "task.rows=[direct,svd]", "task.fit_steps=1", *small)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "adhoc" / "compare-s0"
    verdicts = pd.read_parquet(folder / "verdicts.parquet")
    assert set(verdicts["question"]) == {"subject", "style", "both"} and "Right on controls" in done.stdout
    assert "verdicts.parquet" in json.loads((folder / "manifest.json").read_text())["files"]
    before = sorted((tmp_path / "store" / "judge").iterdir())
    again = commands.run("task=judge", f"runs=[{folder}]", *small)
    assert again.returncode == 0, again.stderr
    assert sorted((tmp_path / "store" / "judge").iterdir()) == before
    other = pd.read_parquet(tmp_path / "adhoc" / "judge-truth-pairwise" / "verdicts.parquet")
    pd.testing.assert_frame_equal(other, verdicts)
