"""The rows of a table: methods between the baseline and oracle rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DatasetSpec, WorldSpec
from lorabench.data.concepts import Role
from lorabench.data.pairs import Pair
from lorabench.engine.record import sha256
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.masked import MaskedSum
from lorabench.merging.method import Method, key_of_component, load
from lorabench.report.labels import BASELINES, ORACLE, label


@dataclass(frozen=True)
class Row:
    """A row of the table: a method, a baseline, or the oracle, which has no method.

    Args:
        name: Name of the method in tables.
        ablation: Name of the ablation, or "none".
        method: The method; None for the oracle.
        live: Whether images are sampled with the separate LoRAs at the scales of the merge, without a merged LoRA.
        strength: Additional scale of all LoRAs of a role during sampling; None stands for 1.
    """

    name: str
    ablation: str = "none"
    method: Method | None = None
    live: bool = False
    strength: dict[Role, float] | None = None

    @classmethod
    def of(cls, name: str, ablation: str = "none", **settings: Any) -> Row:
        """Return the row of a preset, with changed settings if given."""
        return cls.chosen(load(name, ablation, **settings), ablation)

    @classmethod
    def chosen(cls, method: Method, ablation: str) -> Row:
        """Return the row of a method; baselines are sampled live."""
        return cls(method.name, ablation, method, method.name in BASELINES)

    @property
    def is_method(self) -> bool:
        """Return whether the row has a merge."""
        return self.method is not None and not self.live

    @property
    def own(self) -> Method:
        """Return the method of a row that is not the oracle."""
        assert self.method is not None
        return self.method

    @property
    def is_uniform(self) -> bool:
        """Return whether the row averages the merges of each content with each style."""
        merge = self.own.merge
        return isinstance(merge, MaskedSum | LearnedMasks) and merge.concepts == "uniform"

    def merge_key(self, pair: Pair) -> dict[str, Any]:
        """Return the settings of the merge that determine its result for a pair; files are given by their hash."""
        merge = self.own.merge
        key = key_of_component(merge)
        key["settings"] |= {name: sha256(file) for name, file in merge.files().items()}
        if not pair.couples:  # several concepts only
            key["settings"].pop("concepts", None)
        return key


def name_of(row: Row) -> str:
    """Return the name of a row in tables."""
    return label(row.name, row.ablation)


def rows_with_baselines(chosen: Row, dataset: DatasetSpec, pairs: Sequence[Pair]) -> list[Row]:
    """Return the baselines, the oracle if the ground truth of every pair is known, and the chosen method."""
    baselines = [Row.of(name) for name in BASELINES if name != chosen.name]
    known = isinstance(dataset, WorldSpec) and all(pair.is_single for pair in pairs)
    return [*baselines, *([Row(ORACLE)] if known else []), chosen]


def check_rows(key: str, names: Sequence[str], example: str, baselines: str | None = None) -> None:
    """Check the list of rows in a study's configuration.

    Args:
        key: Name of the setting.
        names: Its value.
        example: A valid value, for messages.
        baselines: Reason why baselines are not allowed; None allows them.

    Raises:
        UserError: If the list is empty, has a row twice, or has a baseline that is not allowed.
    """
    if not names:
        raise UserError(f"{key} is empty; use {key}={example}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{key} names {twice} twice; name each once")
    if baselines and (baseline := next((name for name in names if name.partition(" ")[0] in BASELINES), None)):
        raise UserError(f"{key} names {baseline}, which {baselines}; leave it out")


def check_uniform(rows: Sequence[Row], pairs: Sequence[Pair]) -> None:
    """Check that `concepts=uniform` is used only if a pair has several subjects or styles.

    Raises:
        UserError: If all pairs are single, or if the row does not merge.
    """
    for row in rows:
        if row.is_uniform and (row.live or all(pair.is_single for pair in pairs)):
            raise UserError(
                f"method.concepts=uniform averages the merges of several subjects, but {row.name} has single pairs; "
                "use dataset.contents=[mug_1,cat_1] or method.concepts=joint"
            )
