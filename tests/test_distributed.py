"""Ranks: equal results for any number of ranks, and a failure of one ends all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from commands import Commands
from conftest import project_config
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from rank_jobs import After, Slow, Work, broken, fine, item, killed, mistaken, plan_at

from lorabench.base import UserError
from lorabench.config.checks import validate
from lorabench.config.schemas import LoRASpec, TrainerSpec
from lorabench.engine.group import Group
from lorabench.engine.make import make
from lorabench.engine.together import check_same, shares
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.plan import Plan

ROOT = Path(__file__).parents[1]
WORLD = [
    "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", "dataset.content_images=2", "dataset.style_images=2",
    "dataset.references=2", "method=duolora", "method.fit.steps=2", "generate.images=3", "generate.batch=2",
]  # fmt: skip


def ranks(count: int) -> TrainerSpec:
    return TrainerSpec("cpu", "32-true", 0, 1, devices=count)


@pytest.fixture
def plan(tmp_path: Path, lora_spec: LoRASpec) -> Plan:
    return plan_at(tmp_path, ranks(2), lora_spec)


def composed(tiny: Sequence[str], root: Path, *overrides: str) -> Plan:
    """Return the plan of a tiny run with its own store."""
    cfg = compose("config", [*tiny, *WORLD, f"output={root}", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return plan_of(cfg)


def made(plan: Plan) -> dict[str, pd.DataFrame]:
    """Compute missing artifacts and return the scores of every row."""
    make(plan.store, plan.trainer, plan.all_artifacts())
    return {item.name: pd.read_parquet(plan.path(item) / "scores.parquet") for item in plan.artifacts("score")}


def files(plan: Plan, stage: str) -> dict[str, bytes]:
    paths = [path for item in plan.artifacts(stage) for path in plan.path(item).glob("*.[ps]*")]
    return {str(path.relative_to(plan.store.root)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def one_process(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, pd.DataFrame]]:
    """Return a run of one process and its scores."""
    with project_config():
        plan = composed(tiny, tmp_path_factory.mktemp("one_process"), "trainer.workers=0")
    return plan, made(plan)


def assert_same(plan: Plan, one_process: tuple[Plan, dict[str, pd.DataFrame]], scores: dict[str, pd.DataFrame]) -> None:
    """Check that images and scores are equal bit by bit."""
    first, expected = one_process
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(scores[name], frame, check_exact=True)
    for stage in ("generate", "score"):
        assert files(plan, stage) == files(first, stage)
    assert not list((plan.store.root / ".drafts").iterdir())
    for each in plan.artifacts("generate"):
        assert denoiser_passes(plan.path(each)) == denoiser_passes(first.path(each))


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_give_scores_of_one(tiny: list[str], tmp_path: Path, hydra: None, one_process, ranks: int) -> None:
    """There are fewer items than ranks (one merge, two LoRAs), and every row of images has two units."""
    plan = composed(tiny, tmp_path, "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}")
    assert len(plan.artifacts("personalize")) == 2 and len(plan.artifacts("merge")) == 1
    assert_same(plan, one_process, made(plan))


def denoiser_passes(path: Path) -> int | None:
    return json.loads((path / "cost.json").read_text()).get("denoiser_passes")


def test_batch_sizes_change_nothing_but_last_digits(tiny: list[str], tmp_path: Path, hydra: None) -> None:
    """Scores differ by 1e-5 between scoring batch sizes, by 2e-3 between generation batches (rounded gray levels)."""
    tables: dict[tuple[int, int], pd.DataFrame] = {}
    for drawn, scored in ((1, 1), (1, 4), (1, 8), (4, 8), (8, 8)):
        batches = ["generate.images=5", f"generate.batch={drawn}", f"scorers.batch={scored}"]
        tables[drawn, scored] = table(made(composed(tiny, tmp_path, "trainer.workers=0", *batches)))
    first = tables[1, 1]
    for (drawn, scored), other in tables.items():
        assert other.drop(columns="value").equals(first.drop(columns="value"))
        tolerance = 1e-5 if drawn == 1 else 2e-3
        np.testing.assert_allclose(other["value"], first["value"], atol=tolerance, err_msg=f"{drawn}, {scored}")


def table(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([frame.assign(row=name) for name, frame in scores.items()], ignore_index=True)


def test_shares_keep_neighbours_together_and_cost_same() -> None:
    cut = shares([4, 4, 1], [8.0, 8.0, 1.0], 2)
    assert cut == [[[0, 1, 2, 3], [], []], [[], [0, 1, 2, 3], [0]]]
    many = shares([1, 1], [1.0, 1.0], 5)
    assert sum(bool(units) for rank in many for units in rank) == 2
    assert sorted(number for rank in shares([7], [1.0], 3) for number in rank[0]) == list(range(7))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a folder in which slow jobs record the process that they run in."""
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


def alive(log: Path) -> list[str]:
    return [file.name for file in log.iterdir() if Path(f"/proc/{file.name}").exists()]


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("work", "kind", "line"),
    [
        (mistaken, UserError, "^this is wrong: type that$"),
        (broken, RuntimeError, r"^rank \d failed: ValueError: ours$"),
        (killed, UserError, r"^rank \d was killed by SIGKILL, most likely for want of memory; .* to resume"),
    ],
)
def test_failing_rank_ends_others_and_shows_its_own_error(
    plan: Plan, log: Path, capfd: pytest.CaptureFixture[str], work: Work, kind: type[Exception], line: str
) -> None:
    """One rank is in the middle of a long job when the other one fails."""
    with pytest.raises(kind, match=line) as raised:
        make(plan.store, plan.trainer, [item(0, fine), item(1, Slow(log)), item(2, After(log, work))])
    began = max(file.stat().st_mtime for file in log.iterdir())
    assert time.time() - began < 20 and not alive(log)
    if work is broken:
        assert 'raise ValueError("ours")' in str(raised.value.__cause__)
    assert plan.store.find(item(0, fine)) and not plan.store.find(item(1, fine))
    captured = capfd.readouterr()
    assert not captured.out and all("left" in text for text in captured.err.splitlines() if text)  # nothing but the bar


CODE = """
import sys
from pathlib import Path
from lorabench.config.schemas import TrainerSpec
import rank_jobs
from rank_jobs import item, plan_at
from lorabench.engine.make import make
from lorabench.tasks.cli import interrupted
if __name__ == "__main__":
    root = Path(sys.argv[1])
    plan = plan_at(root, TrainerSpec("cpu", "32-true", 0, 1, devices=2), None)
    work = getattr(rank_jobs, sys.argv[2])(root / "log")
    try:
        make(plan.store, plan.trainer, [item(number, work) for number in range(2)])
    except KeyboardInterrupt:
        sys.exit(interrupted())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "work"),
    [(signal.SIGINT, "Predicting"), (signal.SIGKILL, "Slow")],
)
def test_ranks_end_with_their_parent(tmp_path: Path, log: Path, number: signal.Signals, work: str) -> None:
    """Test Ctrl-C, which reaches the process group and both ranks inside Lightning, and a killed parent."""
    script = tmp_path / "script.py"
    script.write_text(CODE)
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), work], env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: len(alive(log)) == 2 or process.poll() is not None, 120)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130 and "Traceback" not in err
        assert err.splitlines()[-1].startswith("interrupted; finished artifacts are kept")
    else:
        process.kill()
        process.communicate(timeout=60)
    until(lambda: not alive(log), 15)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_share_run(commands: Commands, tiny: list[str], tmp_path: Path, hydra: None, one_process) -> None:
    """Run the command twice: the process with rank 0 assembles the run folder. Two ranks give the scores of one."""
    output, port = tmp_path / "output", free_port()
    nodes = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.nodes=2"]
    command = [*tiny, *WORLD, *nodes, f"trainer.rendezvous=localhost:{port}", f"output={output}"]
    ends = [node.end() for node in [commands.start(*command) for _ in range(2)]]
    assert [end.returncode for end in ends] == [0, 0], ends
    shown, other = sorted((end.stdout for end in ends), key=lambda text: "report.html" not in text)
    assert "duolora" in shown and other == (
        "this node's share is done; another node, which has rank 0, shows the results\n"
    )
    [scores] = output.rglob("adhoc/*/scores.parquet")
    assert set(pd.read_parquet(scores)["method"]) == {"base", "content_only", "style_only", "oracle", "duolora"}
    plan = composed(tiny, output, *nodes)
    assert_same(
        plan,
        one_process,
        {item.name: pd.read_parquet(plan.path(item) / "scores.parquet") for item in plan.artifacts("score")},
    )


def test_nodes_with_different_commands_are_refused() -> None:
    group = Group(1, 2, cast(Any, None), ("localhost", 1))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="given different commands; use the"):
        patch.setattr(Group, "broadcast", lambda self, mine: "the keys of rank 0")
        check_same(group, [[item(0, fine)]])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["trainer.devices=-1"], "trainer.devices=-1 must be at least 0"),
        (["trainer.nodes=2"], "trainer.nodes=2 needs ranks on each; use trainer=ddp trainer.devices="),
        (["trainer=ddp", "trainer.nodes=2"], "trainer.rendezvous=None must have the form <host>:<port>"),
        (["trainer=ddp", "trainer.nodes=2", "trainer.rendezvous=node7"], "trainer.rendezvous=node7 must have the form"),
        (["scorers.batch=0"], "scorers.batch=0 must be at least 1"),
    ],
)
def test_mistakes_are_found_before_anything_starts(hydra: None, overrides: list[str], line: str) -> None:
    HydraConfig.instance().set_config(compose("config", overrides, return_hydra_config=True))
    with pytest.raises(UserError, match=line):
        validate(compose("config", overrides))
