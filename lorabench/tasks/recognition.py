"""Recognizing the base model of LoRA files from their layers: names and shapes, without reading tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorabench.base import UserError
from lorabench.config.schemas import ModelSpec
from lorabench.models.families import FLUX, SD3, SDXL, Family
from lorabench.models.files import preset
from lorabench.models.known import KNOWN
from lorabench.models.shapes import models_of, sdxl_names
from lorabench.tasks.user_loras import UserPair

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter
    from lorabench.lora.factors import Shape


def recognized(own: UserPair, default: ModelSpec) -> ModelSpec:
    """Return the preset of the transformer whose layers the files adapt, or the default for all other files.

    If some files fit no known model, it is that of the other files, or of their family, so that the merge names the
    file and the layer that do not fit.

    Raises:
        UserError: If the files are of models of different families, or of different transformers.
    """
    from lorabench.lora.adapter import Adapter

    try:
        loras = {str(each.path): Adapter.open(each.file) for each in own.files}  # names and shapes only
    except UserError:
        return default  # the merge names the error
    if not (every := models_of([*loras.values()])):
        shown = {path: lora for path, lora in loras.items() if lora.layers}  # CLIP is in several families
        families = {path: family for path, lora in shown.items() if (family := family_of(lora))}
        check_equal({path: family.title for path, family in families.items()})
        if not shown or SDXL in families.values():
            return default
        fits = {path: names for path, lora in shown.items() if (names := models_of([lora]))}
        every = [name for name in KNOWN if fits and all(name in names for names in fits.values())]
        if not every:
            check_equal({path: f"model={names[0]}" for path, names in fits.items()})
            every = [FLUX.name if FLUX in families.values() else SD3.name]
    return default if every[0] in sdxl_names() else preset(every[0])


def check_equal(models: Mapping[str, str]) -> None:
    """Check that files are of one model.

    Args:
        models: Model by path, in words.

    Raises:
        UserError: If they are not; it names a file of each model.
    """
    first: dict[str, str] = {}
    for path, model in models.items():
        first.setdefault(model, path)
    if len(first) > 1:
        listed = " and ".join(f"{path} is a LoRA of {model}" for model, path in first.items())
        raise UserError(f"{listed}; they cannot be merged or compared: give LoRAs of one model")


def family_of(lora: Adapter) -> Family | None:
    """Return the family of a LoRA from the known models that it fits, or from its layers; None if they do not show it.

    The double blocks of FLUX.1 and the blocks of SD3 have the same names, and so have those of other transformers.
    """
    from lorabench.lora.factors import shapes_of
    from lorabench.lora.files.names import is_transformer
    from lorabench.lora.files.transformer_names import is_flux

    if models := models_of([lora]):
        return KNOWN[models[0]]
    if not is_transformer(lora):
        return SDXL
    return FLUX if is_flux(shapes_of(lora.factors)) else None


def fitting(lora: Adapter, other: str = "<its model>") -> str:
    """Return the known model that a LoRA fits, or a placeholder."""
    return next(iter(models_of([lora])), other)


def check_comparable(own: UserPair, loras: Sequence[Adapter]) -> None:
    """Check that files can be compared layer by layer.

    Args:
        own: The files.
        loras: Their contents.

    Raises:
        UserError: If the files are of different models, known or not.
    """
    recognized(own, preset("sdxl"))
    seen: dict[str, tuple[str, Shape]] = {}
    for each, lora in zip(own.files, loras, strict=True):
        for layer, shape in lora.shapes.items():
            path, (_, inputs, outputs) = seen.setdefault(layer, (str(each.path), shape))
            if shape[1:] != (inputs, outputs):
                raise UserError(
                    f"{each.path} maps {shape[1]} to {shape[2]} channels at {layer}, and {path} {inputs} to {outputs}; "
                    "give LoRAs of one model"
                )
