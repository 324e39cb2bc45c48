"""Configurations of peft, from which a file without alphas gets the scale of its layers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.lora.files.names import DENOISER

METADATA_KEY = "lora_adapter_metadata"  # metadata key of the peft configs that diffusers' save_lora_weights writes
PEFT_PREFIX = "base_model.model."
PEFT_CONFIG = "adapter_config.json"  # name of the config that peft writes into the folder of a file


@dataclass(frozen=True)
class PeftConfig:
    """alpha in peft's config of one component; None: alpha = rank."""

    alpha: float | None = None
    patterns: tuple[tuple[re.Pattern[str], float], ...] = ()
    rslora: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> PeftConfig:
        """Read peft's own options.

        Raises:
            ValueError, TypeError, AttributeError, re.error: If they are not options of peft.
        """
        alpha = config.get("lora_alpha")
        alphas = (config.get("alpha_pattern") or {}).items()
        patterns = tuple(
            (re.compile(rf"(.*\.)?({pattern})"), float(value)) for pattern, value in alphas
        )  # peft's reading
        return cls(None if alpha is None else float(alpha), patterns, bool(config.get("use_rslora")))

    def scale(self, path: str, rank: int) -> float:
        """Return alpha / rank, or alpha / sqrt(rank) with rank stabilization."""
        alpha = rank if self.alpha is None else self.alpha
        alpha = next((value for pattern, value in self.patterns if pattern.fullmatch(path)), alpha)
        return alpha / (rank**0.5 if self.rslora else rank)


def read_configs(path: Path, keys: list[str], metadata: Mapping[str, str]) -> dict[str, PeftConfig]:
    """Return the configs by component, from the file's metadata or from the config file in the same folder."""
    found: dict[str, dict[str, Any]] = {}
    try:
        for name, value in json.loads(metadata.get(METADATA_KEY, "{}")).items():
            component, _, option = name.partition(".")
            found.setdefault(DENOISER if component == "transformer" else component, {})[option] = value
        config_file = path.parent / PEFT_CONFIG
        if not found and config_file.is_file() and any(key.startswith(PEFT_PREFIX) for key in keys):
            found["unet"] = json.loads(config_file.read_text())
        return {component: PeftConfig.of(config) for component, config in found.items()}
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise UserError(
            f"{path} has a peft config that cannot be read ({error}); write it again with pipe.save_lora_weights"
        ) from None
