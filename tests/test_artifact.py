"""The graph of artifacts: keys, order of computation, and the artifacts that a change of code recomputes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from artifacts import artifact

import lorabench
from lorabench.engine.artifact import Artifact, Part, batches, closure, waves
from lorabench.engine.work import BatchWork

LORAS = [artifact("personalize", {"n": number}) for number in range(2)]
MERGE = artifact("merge", {}, inputs={"loras": LORAS})
IMAGES = artifact("generate", {}, inputs={"merged": [MERGE], "loras": [Part(LORAS[0], "content")]})


def test_key_depends_on_version_parameters_and_inputs() -> None:
    other = Artifact("merge", "another name", 1, {}, print, {"loras": LORAS}, steps=7, cost=2.0, batch_key="b")
    assert other.key == MERGE.key
    changes = [
        Artifact("merge", "merge", 2, {}, print, {"loras": LORAS}),
        artifact("merge", {"lr": 1}, inputs={"loras": LORAS}),
        artifact("merge", {}, inputs={"loras": LORAS[::-1]}),
        artifact("merge", {}, inputs={"loras": [Part(LORAS[0], "content"), Part(LORAS[0], "style")]}),
        artifact("merge", {"loras": LORAS[0].key}),
        artifact("score", {}, inputs={"loras": LORAS}),
    ]
    assert len({MERGE.key, *(each.key for each in changes)}) == 7


def test_closure_has_each_artifact_once_after_its_inputs() -> None:
    assert list(closure([IMAGES, MERGE]).values()) == [*LORAS, MERGE, IMAGES]


def test_waves_are_stages_in_order_of_need() -> None:
    oracle = artifact("generate", {"oracle": True})
    scores = [artifact("score", {}, inputs={"images": [each]}) for each in (oracle, IMAGES)]
    assert waves(scores) == [LORAS, [MERGE], [oracle, IMAGES], scores]


def test_wave_has_no_artifact_of_its_own_inputs() -> None:
    backbone = artifact("personalize", {"backbone": True})
    lora = artifact("personalize", {"on": "backbone"}, inputs={"backbone": [backbone]})
    assert waves([lora, LORAS[0]]) == [[backbone, LORAS[0]], [lora]]


class Pairs(BatchWork):
    batch_size = 2

    @classmethod
    def run(cls, works, folders, progress) -> None:
        """Compute nothing."""


def test_batches_have_one_key_and_limit() -> None:
    keys = ["a", "a", "a", "b", None, None]
    merges = [artifact("merge", {"n": n}, Pairs(), batch_key=key) for n, key in enumerate(keys)]
    assert [len(batch) for batch in batches(merges)] == [2, 1, 1, 1, 1]


KEYS = """
import json, sys
from pathlib import Path
from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.config.schemas import *
from lorabench.data.catalogue import load_pairs
from lorabench.data.scenes import Prompts
from lorabench.engine.store import Store
from lorabench.models.files import ModelFiles
from lorabench.scoring.files import ScorerSet
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row, rows_with_baselines
world = MicroworldSpec("microworld", ["mug_1"], ["ink_1"], None, 2, 2, 2)
pairs = load_pairs(world, Prompts())
chosen = [Row.of(name) for name in ("direct", "duolora")]
lora = LoRASpec(rank=2, alpha=2, blocks=[], text_encoders=False, text_lr=1e-3, steps=3, batch=2, accumulate=1,
    optimizer="adamw", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, schedule="constant", cycles=1, warmup=0,
    max_grad_norm=None, min_snr=None, prior_weight=0.0, prior_images=0, flips=False, crops=0, sample_every=0)
rows = [*rows_with_baselines(chosen[0], world, pairs), chosen[1]]
plan = Plan(store=Store(Path(sys.argv[1])), pairs=pairs, rows=rows,
    dataset=world, model=ModelFiles(Path("m"), Path("m")), model_name="micro", scorers=ScorerSet(()), weights="w",
    scorers_digest="s", lora=lora, generation=GenerateSpec(1, 1, 1.0, 1), merging=MergeSpec(1),
    trainer=TrainerSpec("cpu", "32-true", 0, 1), seed=0)
print(json.dumps([[each.stage, each.name, each.key] for each in plan.all_artifacts()]))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the package without its weights, and of its configuration."""
    source = Path(lorabench.__file__).parent
    shutil.copytree(source, tmp_path / "lorabench", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copytree(source.parent / "conf", tmp_path / "conf")
    return tmp_path


def keys_in(root: Path) -> dict[tuple[str, str], str]:
    """Return the keys of a small run by stage and name, computed by the package in this folder."""
    command = [sys.executable, "-c", KEYS, str(root / "store")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {(stage, name): key for stage, name, key in json.loads(done.stdout)}


def edit(root: Path, file: str, old: str, new: str) -> None:
    path = root / "lorabench" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_reworded_renamed_and_moved_code_changes_no_key(copy: Path) -> None:
    before = keys_in(copy)
    edit(copy, "merging/methods/duolora.py", '"""', '"""Reworded. ')
    edit(copy, "merging/least_squares.py", '"""', '"""Reworded. ')
    edit(copy, "merging/masks.py", "def mean_masks", "def masks_mean")
    (copy / "lorabench" / "merging" / "constyle.py").rename(copy / "lorabench" / "merging" / "moved.py")
    for path in (copy / "lorabench").rglob("*.py"):
        path.write_text(path.read_text().replace("lorabench.merging.constyle", "lorabench.merging.moved"))
    assert keys_in(copy) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        (
            "merging/methods/duolora.py", "    prior: Any\n", "    version = 2\n    prior: Any\n",
            {"merge of duolora", "generate duolora", "score duolora"},
        ),
        (
            "tasks/plan.py", '"generate": 2', '"generate": 3',
            {f"{stage} {row}" for stage in ("generate", "score") for row in
             ("base", "content_only", "style_only", "direct", "duolora")},
        ),
        ("tasks/plan.py", '"oracle": 1', '"oracle": 2', {"generate oracle", "score oracle"}),
    ],
)  # fmt: skip
def test_changed_version_changes_exactly_what_depends_on_it(
    copy: Path, file: str, old: str, new: str, changed: set[str]
) -> None:
    before = keys_in(copy)
    edit(copy, file, old, new)
    after = keys_in(copy)
    assert before.keys() == after.keys()
    names = {f"{stage} {name.split()[0]}" for stage, name in before if before[stage, name] != after[stage, name]}
    assert {name.replace("merge mug_1+ink_1", "merge of duolora") for name in names} == changed
