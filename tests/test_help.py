"""`python run.py --help` is the project's own page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorabench.base import CONF
from lorabench.tasks import help as help_page
from lorabench.tasks.cli import TASKS

ROOT = Path(__file__).parents[1]


def test_help_is_printed_for_both_switches() -> None:
    for words in (["--help"], ["-h"], ["method=direct", "--help"]):
        done = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == help_page.text(TASKS) + "\n"


def test_every_group_and_option_is_named_without_schemas() -> None:
    page = help_page.text(TASKS)
    words = page.split()
    assert "schema" not in page and "Hydra is" not in page
    for group in help_page.GROUPS:
        assert f"{group}=" in words
        for path in (CONF / group).glob("*.yaml"):
            assert path.stem in words
    groups = {str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir() and any(path.glob("*.yaml"))}
    assert groups - set(help_page.GROUPS) <= {"layer_sets", "paper"}  # data, no choice


def test_commands_exist() -> None:
    named = [name.removeprefix("task=") for name in help_page.COMMANDS if name.startswith("task=")]
    assert set(named) <= {*TASKS, "tune"} and {"benchmark", "merge", "inspect"} <= set(named)


@pytest.mark.parametrize("line", [line for line in help_page.EXAMPLES.splitlines() if "task=" not in line])
def test_examples_compose(line: str) -> None:
    words = line.partition("#")[0].split()[2:]
    words = [word.replace("direct,ziplora,klora", "klora") for word in words if word != "-m"]
    if "--cfg" not in words:
        words += ["--cfg", "job"]
    done = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
