"""The layout of the package; imports between its parts are contracts of import-linter (`make check`)."""

import importlib
import inspect
from pathlib import Path

import lorabench
from lorabench.report.sweep import OWN_TASKS
from lorabench.tasks.cli import RUNS, TASKS

MOST = 14


def test_package_has_few_top_level_names() -> None:
    folder = Path(lorabench.__file__).parent
    names = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    assert len(names) <= MOST, names


def test_task_that_fills_folder_returns_its_page() -> None:
    """`cli.fill` prints the path of the page that `run` names."""
    for name in set(TASKS) - set(OWN_TASKS) - set(RUNS):
        run = importlib.import_module(TASKS[name]).run
        assert inspect.signature(run).return_annotation in ("str", str), name
