"""Build the network that a scorer's description names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lorabench.scoring.weights import Unfilled


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Return the network of a description with uninitialized weights."""
    architecture = config["architecture"]
    with Unfilled():
        if config["kind"] == "dino":
            from lorabench.scoring.dino import build_dino

            return build_dino(architecture)
        if config["kind"] == "clip":
            from lorabench.scoring.clip import build_clip

            return build_clip(architecture)
        if config["kind"] == "factors":
            from lorabench.scoring.factor_network import build_factors

            return build_factors(architecture)
        from lorabench.scoring.csd import build_csd

        return build_csd(architecture)
