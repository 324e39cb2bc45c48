"""Checkpoints that are pickles, read without running what is in them, and written once as safetensors.

CSD's published checkpoint is that of a training run: {model_state_dict, opt_bb, opt_proj, iter, args, fp16_scaler},
with an argparse.Namespace and a numpy number, which torch's restricted unpickler has to be told of. They are the only
additions. Memory-mapped, so that the optimizer's state stays on disk.
"""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError

if TYPE_CHECKING:
    import torch

STATE = "model_state_dict"  # of CSD's checkpoint
PREFIX = "module."  # of a model trained in DistributedDataParallel


def read_pickle(path: Path) -> Mapping[str, Any]:
    """What a torch.save file holds, by torch's restricted unpickler; UserError when it needs more or is none."""
    import numpy as np
    import torch

    scalar = np.float64(0).__reduce__()[0]  # what a pickled number is made by; older numpys had it elsewhere
    allowed = [
        argparse.Namespace, np.dtype, np.dtypes.Float64DType, scalar, (scalar, "numpy.core.multiarray.scalar"),
    ]  # fmt: skip
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path}; name the file that was downloaded")
    archive = zipfile.is_zipfile(path)
    if not archive and begins(path, b"PK"):
        raise UserError(f"{path} ends too early, it was not fetched whole; fetch it again")
    if archive and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        raise UserError(f"{path} is a TorchScript program, not weights; give the weights as safetensors")
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is no checkpoint that can be read without running code ({first_line(error)}); "
            "give the weights as safetensors"
        ) from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}, not named tensors; give the weights as safetensors")
    return found


def begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:120]


def state_of(found: Mapping[str, Any], path: Path, kind: str) -> dict[str, torch.Tensor]:
    """The tensors by name: of CSD those of its training checkpoint without `module.`, of others the mapping itself."""
    import torch

    if kind == "csd":
        if STATE not in found:
            names = ", ".join(sorted(map(str, found))[:3]) or "nothing"
            raise UserError(
                f"{path} is no CSD checkpoint: it has {names}, not {STATE}; get pytorch_model.bin of the hub's "
                "tomg-group-umd/CSD-ViT-L"
            )
        found = found[STATE]
    state = {str(name).removeprefix(PREFIX): value for name, value in found.items()}
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        other = next(name for name, value in state.items() if not isinstance(value, torch.Tensor))
        raise UserError(f"{path} holds more than tensors ('{other}'); give the backbone's weights alone")
    return state


def convert(path: Path, target: Path, config: Mapping[str, Any]) -> None:
    """The pickle's tensors into `target`, once they fit the architecture of `config` in every name and shape."""
    import torch
    from safetensors.torch import save_file

    from lorabench.scoring.networks import build_network
    from lorabench.scoring.weights import check_fit

    state = state_of(read_pickle(path), path, config["kind"])
    check_fit(build_network(config), state, config, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        save_file({name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}, draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
