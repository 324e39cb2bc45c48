"""Facts about public data sets, from the YAML files in this folder; each has its source."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def packaged(name: str) -> dict[str, Any]:
    """Return a YAML file of this folder: contexts, styledrop, near_duplicates or pair_lists."""
    return yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))


def is_live(word: str) -> bool:
    """Return whether a class word is one of DreamBooth's live subjects."""
    return word in packaged("contexts")["live_classes"]
