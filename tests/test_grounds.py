"""Scenes of the microworld: photographs of a subject on the six grounds of the world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose
from made_run import make_run, read_table
from test_matching import SPEC

from lorabench.base import UserError
from lorabench.data.catalogue import load_pairs
from lorabench.data.microworld.captions import PLACES
from lorabench.data.scenes import Prompts
from lorabench.data.uses import pair_for
from lorabench.report import write_report
from lorabench.report.folder import RunFolder
from lorabench.scoring.factor_rows import ground_of
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.rows import Row

WORLD = replace(SPEC, pairs=["mug_1/ink_1"])


def test_photographs_have_all_grounds_and_joint_images_none() -> None:
    [pair] = load_pairs(WORLD, Prompts(contexts="grounds"))
    assert pair_for(pair, "joint").drawn == (pair.alone,) and pair_for(pair, "style").scenes == ()
    photographs = pair_for(pair, "content")
    assert [scene.prompt for scene in photographs.drawn] == [f"a sks mug {place}" for place in PLACES]
    assert [scene.text for scene in photographs.drawn] == [f"a mug {place}" for place in PLACES]
    assert [ground_of(scene.context) for scene in photographs.drawn] == [
        "studio", "table", "grass", "beach", "snow", "night",
    ]  # fmt: skip


def test_some_grounds_are_chosen_by_their_words() -> None:
    [pair] = load_pairs(WORLD, Prompts(contexts=["in the snow", "a {} at night"]))
    assert [scene.prompt for scene in pair_for(pair, "content").drawn] == [
        "a sks mug in the snow",
        "a sks mug at night",
    ]
    [plain] = load_pairs(WORLD, Prompts())
    assert pair_for(plain, "content").drawn[0].prompt == "a sks mug"


@pytest.mark.parametrize(
    ("contexts", "words"),
    [(["in the jungle"], "has no ground 'in the jungle'; use in a studio"), ("live", "use prompts.contexts=grounds")],
)
def test_unknown_grounds_are_refused(contexts: str | list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_pairs(WORLD, Prompts(contexts=contexts))


def test_plan_generates_photographs_of_each_ground(tiny, hydra, tmp_path: Path) -> None:
    names = ["dataset.pairs=[mug_1/ink_1]", "prompts.contexts=grounds", f"output={tmp_path}"]
    cfg = compose("config", [*tiny, *names, "uses=[joint,content]"])
    plan = plan_of(cfg, [Row.of("direct")])
    joint, content = (plan.generate(plan.rows[0], plan.pairs[0], use) for use in ("joint", "content"))
    assert (len(joint.params["seeds"]), len(content.params["seeds"])) == (2, 12)
    assert content.params["strength"] == {"content": 1.0, "style": 0.0}
    with pytest.raises(UserError, match=r"use uses=\[joint,content\]"):
        plan_of(compose("config", [*tiny, *names]), [Row.of("direct")])


def test_table_shows_prompt_fidelity_of_photographs(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", images=2)
    scores = pd.read_parquet(folder / "scores.parquet").assign(use="joint")
    photographs = scores[scores["metric"] == "clip_t"].assign(use="content", prompt="a sks mug at night", value=0.7)
    others = scores[scores["metric"] == "dino/content"].assign(use="content", value=0.0)
    pd.concat([scores, photographs, others]).to_parquet(folder / "scores.parquet")
    before = len(RunFolder.load(folder).pictures)
    write_report(folder)
    table = read_table(folder)
    assert table.loc["duolora", "clip_t/photo"] == pytest.approx(0.7) and table.loc["duolora", "dino/content"] > 0.3
    assert before == 5 * 4 * 2 and "whether they show the scene" in (folder / "table.md").read_text()
