"""The layout of the package; imports between its parts are contracts of import-linter (`make check`)."""

from pathlib import Path

import lorabench

MOST = 14


def test_package_has_few_top_level_names() -> None:
    folder = Path(lorabench.__file__).parent
    names = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    assert len(names) <= MOST, names
