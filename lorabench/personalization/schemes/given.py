"""The user's files instead of a training; task=merge and task=generate use it for every method."""

from __future__ import annotations

from dataclasses import dataclass

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec
from lorabench.data.pairs import Pair
from lorabench.personalization.training import Output, Training


@dataclass(frozen=True, kw_only=True)
class Given(Training):
    """Nothing is trained."""

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        raise UserError("method/training=given trains nothing; use task=merge with content=<file> style=<file>")
