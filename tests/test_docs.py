"""Generated pages of the documentation, and the links and commands in them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorabench.merging import presets

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments" / "README.md",
    *(ROOT / "docs").glob("*.md"),
]


def test_generated_pages_are_current() -> None:
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_preset_has_one_line_of_description() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    for name in presets.presets():
        assert re.search(rf"^\| `{name}` \| \S.+ \|", page, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [each for each in targets if "://" not in each and not (page.parent / each).exists()]
    assert not missing
