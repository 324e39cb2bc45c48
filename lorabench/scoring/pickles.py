"""Read pickled checkpoints without executing code from them, and convert them once to safetensors.

CSD's published file is a training checkpoint: {model_state_dict, opt_bb, opt_proj, iter, args, fp16_scaler}. It has an
argparse.Namespace and a numpy scalar, the only types that are allowed in addition to those of torch's restricted
unpickler. The file is memory-mapped, so the optimizer's state is not read.
"""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError, __version__
from lorabench.engine.own_files import VERSION, check_replaceable

if TYPE_CHECKING:
    import torch

STATE = "model_state_dict"  # key of the weights in CSD's checkpoint
PREFIX = "module."  # added by DistributedDataParallel


def read_pickle(path: Path) -> Mapping[str, Any]:
    """Read a torch.save file with torch's restricted unpickler.

    Raises:
        UserError: If the file is missing, damaged, or contains more than tensors and the allowed types.
    """
    import numpy as np
    import torch

    scalar = np.float64(0).__reduce__()[0]  # function that unpickles a scalar; older versions of numpy had another path
    allowed = [
        argparse.Namespace, np.dtype, np.dtypes.Float64DType, scalar, (scalar, "numpy.core.multiarray.scalar"),
    ]  # fmt: skip
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path}; use the path of the downloaded file")
    archive = zipfile.is_zipfile(path)
    if not archive and begins(path, b"PK"):
        raise UserError(f"{path} is truncated; download it again")
    if archive and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        raise UserError(f"{path} is a TorchScript program, not weights; use weights in safetensors format")
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a checkpoint that can be read without executing code ({first_line(error)}); "
            "use weights in safetensors format"
        ) from None
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise UserError(f"{path} contains a {kind}, not named tensors; use weights in safetensors format")
    return found


def begins(path: Path, magic: bytes) -> bool:
    """Return whether a file starts with these bytes."""
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its final punctuation."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:120]


def state_of(found: Mapping[str, Any], path: Path, kind: str) -> dict[str, torch.Tensor]:
    """Return the tensors by name; CSD's are in its training checkpoint and have the prefix `module.`."""
    import torch

    if kind == "csd":
        if STATE not in found:
            names = ", ".join(sorted(map(str, found))[:3]) or "nothing"
            raise UserError(
                f"{path} is not a CSD checkpoint: it has {names}, not {STATE}; use pytorch_model.bin of the hub's "
                "tomg-group-umd/CSD-ViT-L"
            )
        found = found[STATE]
    state = {str(name).removeprefix(PREFIX): value for name, value in found.items()}
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        other = next(name for name, value in state.items() if not isinstance(value, torch.Tensor))
        raise UserError(f"{path} contains more than tensors ('{other}'); use a file with only the backbone's weights")
    return state


def convert(path: Path, target: Path, config: Mapping[str, Any]) -> None:
    """Write a pickle's tensors to `target` as safetensors, if all names and shapes fit the architecture in `config`.

    Raises:
        UserError: If they do not fit, or `target` is a file that lorabench did not write.
    """
    import torch
    from safetensors.torch import save_file

    from lorabench.scoring.networks import build_network
    from lorabench.scoring.weights import check_fit

    check_replaceable(target, "another path")
    state = state_of(read_pickle(path), path, config["kind"])
    check_fit(build_network(config), state, config, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        whole = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        save_file(whole, draft, {"format": "pt", VERSION: __version__})
        os.replace(draft, target.resolve())
    finally:
        draft.unlink(missing_ok=True)
