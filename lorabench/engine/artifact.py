"""The graph of a run: an artifact is computed from parameters and from other artifacts.

The key of an artifact is the hash of its stage, its version, its parameters and the keys of its inputs. Keys are known
before anything is computed, so a finished run is recognized without heavy imports. They do not depend on source text:
`version` is a number to raise when results change. Then the artifact and all artifacts that depend on it are
recomputed, and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lorabench.engine.record import key_of
from lorabench.engine.work import BatchWork, Resumable, Work


@dataclass(frozen=True)
class Artifact:
    """A folder of the store and the function that computes it.

    Args:
        stage: Kind of artifact, the folder in the store.
        name: Name in messages and manifests; not part of the key.
        version: Number to raise when the same parameters and inputs give other results.
        params: Everything else that changes the result, as JSON.
        inputs: The artifacts that `work` reads, by purpose and in order.
        work: Function that writes the files into an empty folder.
        steps: Value of the progress of `work` at its end.
        cost: Share of the progress bar.
        batch_key: Artifacts with the same key can be computed together by one `BatchWork`. None: one at a time.
    """

    stage: str
    name: str
    version: int
    params: Mapping[str, Any]
    work: Work | Resumable
    inputs: Mapping[str, Sequence[Artifact | Part]] = field(default_factory=dict)
    steps: int = 1
    cost: float = 1.0
    batch_key: str | None = None

    @cached_property
    def parts(self) -> dict[str, Any]:
        """Return the version, parameters and input keys: the record in key.json, whose hash is the key."""
        inputs = {name: [each.key for each in several] for name, several in self.inputs.items()}
        return {"version": self.version, "params": dict(self.params), "inputs": inputs}

    @cached_property
    def key(self) -> str:
        """Return the key: 32 hexadecimal digits."""
        return key_of(self.stage, self.parts)

    def sources(self) -> Iterator[Artifact]:
        """Yield the artifacts that this one is computed from."""
        for several in self.inputs.values():
            yield from (each.artifact if isinstance(each, Part) else each for each in several)


@dataclass(frozen=True)
class Part:
    """One of several results of an artifact, chosen by its name."""

    artifact: Artifact
    name: str

    @property
    def key(self) -> str:
        """Return the key of the artifact and the name of the part."""
        return f"{self.artifact.key}/{self.name}"


def closure(targets: Iterable[Artifact]) -> dict[str, Artifact]:
    """Return the targets and all their direct and indirect inputs, by key. An artifact comes after its inputs."""
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key not in found:
            for source in artifact.sources():
                visit(source)
            found[artifact.key] = artifact

    for target in targets:
        visit(target)
    return found


def waves(targets: Iterable[Artifact]) -> list[list[Artifact]]:
    """Return the closure of the targets in groups of one stage, in an order in which they can be computed.

    An artifact never needs another one of its group or of a later group. A stage is one group unless some of its
    artifacts need others of the same stage.
    """
    left, groups = closure(targets), list[list[Artifact]]()
    while left:
        ready = [each for each in left.values() if not any(source.key in left for source in each.sources())]
        taken = {each.key for each in ready}
        waiting = {each.stage for each in left.values() if each.key not in taken}
        stage = next((each.stage for each in ready if each.stage not in waiting), ready[0].stage)
        groups.append([each for each in ready if each.stage == stage])
        left = {key: each for key, each in left.items() if key not in taken or each.stage != stage}
    return groups


def batches(artifacts: Sequence[Artifact]) -> list[tuple[Artifact, ...]]:
    """Return the artifacts in groups for one call each. A group has one `batch_key` and at most the batch size."""
    groups: list[list[Artifact]] = []
    current: dict[str, list[Artifact]] = {}  # the group of each key that still has room
    for each in artifacts:
        group = current.get(each.batch_key or "", [])
        if not group:
            groups.append(group)
        group.append(each)
        if each.batch_key and isinstance(each.work, BatchWork):
            current[each.batch_key] = group if len(group) < each.work.batch_size else []
    return [tuple(group) for group in groups]
