"""The families of models, as their files show them. Imports nothing heavy.

The class name in a folder's `model_index.json` names the family. A single file is recognized by the names of its
tensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.base import UserError

HINT = "use model.path=<a diffusers folder, a .safetensors checkpoint or a hub id of an SDXL, SD3 or FLUX.1 model>"


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        name: Package in `lorabench.models`.
        title: Name in messages.
        pipelines: Start of the class names of its pipelines in diffusers.
        denoiser: Folder of the denoiser.
        encoders: Folders of the text encoders. Those after the first two may be absent.
        single_file: Start of a tensor name that only its single files have.
    """

    name: str
    title: str
    pipelines: str
    denoiser: str
    encoders: tuple[str, ...]
    single_file: tuple[str, ...]

    @property
    def adapted(self) -> tuple[str, ...]:
        """Return the text encoders whose layers LoRAs adapt: those of CLIP."""
        return self.encoders[:1] if self.name == "flux" else self.encoders[:2]


SDXL = Family(
    "sdxl", "an SDXL model", "StableDiffusionXL", "unet", ("text_encoder", "text_encoder_2"),
    ("conditioner.embedders.1.model.",),
)  # fmt: skip
SD3 = Family(
    "sd3", "an SD3 model", "StableDiffusion3", "transformer", ("text_encoder", "text_encoder_2", "text_encoder_3"),
    ("model.diffusion_model.joint_blocks.",),
)  # fmt: skip
FLUX = Family(
    "flux", "a FLUX.1 model", "FluxPipeline", "transformer", ("text_encoder", "text_encoder_2"),
    ("model.diffusion_model.double_blocks.", "double_blocks."),
)  # fmt: skip
FAMILIES = (SDXL, SD3, FLUX)


def index_of(folder: Path) -> dict[str, Any]:
    """Return the content of `model_index.json`.

    Raises:
        UserError: If the folder is not a pipeline of diffusers.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text())
        known = isinstance(index["_class_name"], str)
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{folder} is not a diffusers model folder; {HINT}")
    return index


def family_of(folder: Path) -> Family:
    """Return the family of a diffusers folder.

    Raises:
        UserError: If it is not a model of a known family.
    """
    kind = index_of(folder)["_class_name"]
    if found := [family for family in FAMILIES if kind.startswith(family.pipelines)]:
        return found[0]
    raise UserError(f"{folder} holds a {kind}, which is not supported; {HINT}")


def parts_of(folder: Path, family: Family) -> list[str]:
    """Return the parts of a folder that hold weights: denoiser, autoencoder, and the text encoders that it has."""
    index = index_of(folder)
    present = [name for name in family.encoders if any(index.get(name) or [None])]
    return [family.denoiser, "vae", *present]
