"""DoRA (Liu et al., ICML 2024, arXiv 2402.09353): the update of a weight whose magnitudes are trained apart.

    W' = m V / ||V||,   V = W + up down,   dW = W' - W

||V|| is the norm of each output's row (peft, and LyCORIS with `wd_on_out`) or of each input's column (older LyCORIS),
as the shape of m shows. dW is dense, so it is cut to a rank, and depends on the base weights W.

    keys        X.dora_scale [out, 1] or [1, in]       LyCORIS, kohya, ComfyUI
                X.lora_magnitude_vector [out]          peft and diffusers
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.compress import nearest, relative
from lorabench.lora.factors import Factors

KEY = re.compile(r"(?P<stem>.+)\.(?:dora_scale|lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?)")
MAGNITUDE = "magnitude"
RANK = 64  # to which an update is cut

BaseWeights = Callable[[str], Tensor]  # weight of a layer "<component>.<module path>", [out, in] or [out, in, k, k]


def split(key: str) -> tuple[str, str] | None:
    """Return a key as (stem, "magnitude"); None if it is not a DoRA's."""
    match = KEY.fullmatch(key)
    return match and (match["stem"], MAGNITUDE)


def needs_base(path: Path, key: str) -> UserError:
    """Return the error for a DoRA without base weights."""
    return UserError(
        f"{path} is a DoRA (key {key!r}), which rescales the base weights; give these to fold it into a LoRA: use "
        "model.path=<diffusers folder or checkpoint of its base model>"
    )


def fold(
    path: Path, layers: Mapping[str, Callable[[], tuple[Factors, Tensor, bool]]], base: BaseWeights
) -> tuple[dict[str, Factors], float]:
    """Return the updates as factors of `RANK`, and their relative error over all layers.

    Args:
        path: Of the file.
        layers: By layer, returns the factors, m, and whether m is of the outputs whatever its shape.
        base: Base weights.

    Raises:
        UserError: If a base weight is missing or has another shape, or magnitudes do not fit or are not finite.
    """
    found, lost, whole = {}, 0.0, 0.0
    for layer, read in layers.items():
        factors, magnitude, outputs = read()
        weight = base(layer).float()
        if weight.flatten(1).shape != (factors.shape[2], factors.shape[1]):
            raise UserError(f"{path} does not fit the base weights at {layer}; use model.path=<its base model>")
        count = weight.shape[0] if outputs or magnitude.shape[:1] == weight.shape[:1] else weight.shape[1]
        if magnitude.numel() != count or not magnitude.isfinite().all():
            raise UserError(
                f"{path} has magnitudes of shape {list(magnitude.shape)} at {layer}, not {count} finite numbers; "
                "download the file again"
            )
        update = difference(factors, magnitude.float(), weight, outputs)
        found[layer], cut, total = nearest(update, min(RANK, *update.shape))
        lost, whole = lost + cut, whole + total
    return found, relative(lost, whole)


def difference(factors: Factors, magnitude: Tensor, weight: Tensor, outputs: bool) -> Tensor:
    """Return dW [out, in].

    Args:
        magnitude: m, one number per output or input.
        weight: W [out, in] or [out, in, k, k].
        outputs: Whether m is of the outputs; else its shape shows it.
    """
    out, inputs = weight.shape[:2]
    v = weight.reshape(out, inputs, -1) + (factors.up @ factors.down).reshape(out, inputs, -1)
    if outputs or magnitude.shape[0] == out:
        norm, shape = v.norm(dim=(1, 2), keepdim=True), (out, 1, 1)
    else:
        norm, shape = v.norm(dim=(0, 2), keepdim=True), (1, inputs, 1)
    return (magnitude.reshape(shape) / norm * v - weight.reshape(v.shape)).flatten(1)
