"""task=tune: a grid of weights is merged, sampled and scored, and the best merge is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Commands
from PIL import Image
from torch.nn.functional import normalize

from lorabench import UserLoRA, merge
from lorabench.lora.adapter import Adapter
from lorabench.scoring.load import load_scorers
from lorabench.tasks.tune import Point, chosen, shares

WEIGHTS = (0.5, 1.0)


@pytest.fixture
def files(loras: tuple[Adapter, Adapter], tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for lora, path in zip(loras, paths, strict=True):
        lora.save(path)
    for k, name in enumerate(("content", "style")):
        (tmp_path / name).mkdir()
        noise = np.random.default_rng(k).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name / "0.png")
    return paths


def test_command_scores_grid_and_writes_best_merge(
    commands: Commands, files: tuple[Path, Path], folder: Path, tmp_path: Path
) -> None:
    words = ["content=a.safetensors", "style=b.safetensors", "model=micro", f"model.path={folder}", "scorers=micro",
             "trainer=cpu",
             "prompt=a sks mug in szn style", "generate.images=2", "generate.steps=2", "content.images=content",
             "style.images=style"]  # fmt: skip
    done = commands.run("task=tune", f"task.weights={list(WEIGHTS)}".replace(" ", ""), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made, table = tmp_path / "tuned", pd.read_csv(tmp_path / "tuned" / "tune.csv")
    assert table["method"].tolist() == ["content only", "style only", *["direct"] * 4]
    scorers = {each.metric: each for each in load_scorers()}
    images = {}
    for row in table.to_dict("records"):
        point = Point(row["method"], row["content_weight"], row["style_weight"])
        images[point] = [Image.open(path) for path in sorted((made / "images" / point.folder).glob("*.png"))]
        for role, metric in (("content", "dino"), ("style", "csd")):
            goal = scorers[metric].embed([np.asarray(Image.open(tmp_path / role / "0.png"))])[role]
            found = scorers[metric].embed([np.asarray(each) for each in images[point]])[role]
            cosine = (normalize(found.double(), dim=1) @ normalize(goal.double(), dim=1).T).mean()
            assert row[f"{role}_score"] == pytest.approx(float(cosine), abs=1e-5)
    best = json.loads((made / "manifest.json").read_text())
    weights, grid = best["weights"], table[table["method"] == "direct"]
    least = grid[["content", "style"]].min(axis=1)
    row = grid.loc[least.idxmax()]
    assert weights == [row["content_weight"], row["style_weight"]] and best["method"] == "direct"
    assert f"chosen: method=direct weights=[{weights[0]:g},{weights[1]:g}]" in done.stdout
    content, style = (UserLoRA(path, weight=weight) for path, weight in zip(files, weights, strict=True))
    expected = merge(content, style, model=folder)
    written = Adapter.load(made / "merged.safetensors")
    for layer, factors in expected.items():
        update = factors.up @ factors.down
        found = written[layer].up @ written[layer].down
        torch.testing.assert_close(found, update, rtol=1e-2, atol=1e-2 * float(update.std()))
    kept = [word for word in words if not word.startswith(("scorers", "content.images", "style.images"))]
    pair = ",".join(f"{weight:g}" for weight in weights)
    again = commands.run("task=generate", "method=direct", f"weights=[{pair}]", "output=again", *kept, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for index, image in enumerate(images[Point("direct", *weights)]):  # the same noise as task=generate
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "again" / f"{index:02d}.png")))
    with Image.open(made / "tune.png") as figure:
        assert figure.width > 800


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["prompt=null"], "task=tune needs a prompt; use"),
        (["task.methods=[ziplora]"], "ziplora learns its merge, which takes minutes per point; use"),
        (["task.methods=[klora]"], "klora cannot be exported as one LoRA file"),
        (["task.weights=[1]"], "must be several numbers above 0; use"),
        (["task.content=clip_i/style"], "task.content=clip_i/style is unknown"),
        (["task.rank=best"], "task.rank=best must be at least 1 or auto"),
    ],
)
def test_mistakes_are_found_first(
    commands: Commands, files: tuple[Path, Path], folder: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    start = ["content=a.safetensors", "style=b.safetensors", "model=micro", f"model.path={folder}"]
    done = commands.run("task=tune", *start, "scorers=micro", "trainer=cpu", "prompt=a boat", *more, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and not (tmp_path / "tuned" / "tune.csv").exists()


def test_choice_loses_neither_concept() -> None:
    table = pd.DataFrame({
        "method": ["content only", "style only", "direct", "direct", "ties"],
        "content_weight": [1.0, 0.0, 1.0, 0.5, 1.0], "style_weight": [0.0, 1.0, 0.5, 1.0, 1.0],
        "content_score": [0.9, 0.1, 0.8, 0.3, 0.6], "style_score": [0.2, 0.7, 0.25, 0.65, 0.5],
    })  # fmt: skip
    found = shares(table)
    assert found["content"].tolist() == pytest.approx([1, 0, 0.875, 0.25, 0.625])
    assert found["style"].tolist() == pytest.approx([0, 1, 0.1, 0.9, 0.6])
    assert chosen(found) == Point("ties", 1.0, 1.0)
    assert found["front"].all()
