"""Messages name keys that exist: whatever follows "use" can be typed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf

import lorabench
from lorabench.base import CONF
from lorabench.tasks.cli import TASKS

KEY = re.compile(r"(?:use|Use|or|and) ([a-z_][\w./]*)=(?!')")  # key='text' is an argument in Python
OF_FILES = {"interpolation"}  # key of a scorer's description


def keys_of(node: Any, path: str = "") -> Iterator[str]:
    for key, value in node.items():
        own = f"{path}.{key}" if path else str(key)
        yield own
        if isinstance(value, dict):
            yield from keys_of(value, own)


@pytest.mark.usefixtures("hydra")
def test_messages_name_keys_that_exist() -> None:
    known = {str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir()} | {"experiments"} | OF_FILES
    datasets = [f"dataset={path.stem}" for path in (CONF / "dataset").glob("*.yaml")]
    judges = [f"judge={path.stem}" for path in (CONF / "judge").glob("*.yaml")]
    for word in [*(f"task={name}" for name in TASKS), *datasets, *judges]:
        cfg = compose("config", [word])
        known |= set(keys_of(OmegaConf.to_container(cfg)))
    unknown = [
        f"{path.name}:{node.lineno}: {match[1]}"
        for path in sorted(Path(lorabench.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for match in KEY.finditer(node.value)
        if match[1] not in known and not match[1].startswith("method.")
    ]
    assert not unknown
