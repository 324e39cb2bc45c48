"""Names of sample sets and parts of their keys. Defaults are omitted, to keep the keys of old runs."""

from typing import Any

from lorabench.data.pairs import Pair
from lorabench.data.uses import JOINT, Use
from lorabench.merging.method import key_of_component
from lorabench.sampling.rule import Sampling
from lorabench.tasks.rows import Row


def sample_name(row: Row, pair: Pair, use: Use) -> str:
    """Return the name of a sample set and of its scores."""
    return " ".join([row.name, pair.name, *([] if use == JOINT else [use])])


def sampling_key(sampling: Sampling) -> dict[str, Any]:
    """Return the properties of a sampling rule that determine its images."""
    key = key_of_component(sampling)
    if sampling.routing == "none":
        del key["settings"]["routing"]
    return key


def scenes_of(pair: Pair) -> dict[str, Any]:
    """Return the scenes of a pair; empty for a pair without scenes."""
    return {"scenes": [[scene.prompt, scene.text] for scene in pair.scenes]} if pair.scenes else {}
