"""Single weights of a model's files, read without building the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.base import UserError
from lorabench.config.schemas import ModelSpec
from lorabench.lora.files.names import DENOISER, file_path, layer
from lorabench.models.files import embedded, model_files

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.files.dora import BaseWeights
    from lorabench.lora.files.tensors import TensorFile


def base_weights(spec: ModelSpec) -> BaseWeights | None:
    """Return a function from a layer "<component>.<module path>" to its weight; None for a model that is not here.

    Files are a diffusers folder, or a single file for the layers of the denoiser.
    """
    if embedded(spec.path) is None and not Path(spec.path).exists():
        return None

    @cache
    def places() -> dict[str, tuple[TensorFile, str]]:
        return places_of(model_files(spec).sources(), Path(spec.path).is_file())

    def weight(layer: str) -> Tensor:
        component = layer.partition(".")[0]
        for name in (layer, f"{component}.{file_path(layer)}"):
            if name in places():
                file, key = places()[name]
                return file.tensor(key)
        raise UserError(f"{spec.path} has no weight of {layer}; use model.path=<diffusers folder of the base model>")

    return weight


def places_of(files: Sequence[Path], single: bool) -> dict[str, tuple[TensorFile, str]]:
    """Return the file and the key of each weight by layer.

    Args:
        files: Of a model.
        single: Whether they are a single file with LDM's names.
    """
    from lorabench.lora.files.tensors import TensorFile

    found: dict[str, tuple[TensorFile, str]] = {}
    for path in files:
        if path.suffix != ".safetensors":
            continue
        file = TensorFile(path)
        for key in file.shapes:
            stem = key.removesuffix(".weight")
            if stem == key:
                continue
            component = path.parent.name
            name = f"{DENOISER if component == 'transformer' else component}.{stem}"
            if single:
                name = layer(stem.removeprefix("model.")) if key.startswith("model.diffusion_model.") else None
            if name is not None:
                found[name] = file, key
    return found
