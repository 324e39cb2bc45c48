"""task=grid: the matrix of combinations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose

from lorabench.engine.failures import Incomplete
from lorabench.sampling.rules.switch import Switch
from lorabench.tasks import grid

pytestmark = pytest.mark.usefixtures("hydra")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return two trainings and two rules."""
    known = {
        "lorabench.personalization.schemes": ["dreambooth", "joint"],
        "lorabench.sampling.rules": ["plain", "switch"],
    }
    monkeypatch.setattr(grid, "components", lambda package, base: dict.fromkeys(known[package]))


def run(tiny: list[str], output: Path) -> str:
    cfg = compose("config", ["experiments=grid", *tiny, f"output={output}", "task.merges=[direct,ties]"])
    grid.run(cfg, output)
    return (output / "grid.md").read_text()


def test_grid_prints_what_runs_and_what_is_refused(few, tiny, tmp_path: Path) -> None:
    lines = run(tiny, tmp_path).splitlines()
    assert lines[0] == "| training | merge | plain | switch |"
    assert lines[2:6] == [
        "| dreambooth | direct | runs | runs |",
        "| dreambooth | ties | runs | refused (1) |",
        "| joint | direct | runs | refused (2) |",
        "| joint | ties | refused (3) | refused (1) |",
    ]
    assert "4 of 8 combinations run, 4 are refused, 0 failed." in lines
    assert any(line.startswith("(1) method/sampling=switch scales each LoRA separately") for line in lines)


def test_failed_combination_is_reported(few, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no steps to take turns in")

    monkeypatch.setattr(Switch, "scales", broken)
    with pytest.raises(Incomplete, match="1 of 4 combinations failed"):
        run(tiny, tmp_path)
    text = (tmp_path / "grid.md").read_text()
    assert "| dreambooth | direct | runs | FAILED (4) |" in text and "no steps to take turns in" in text
