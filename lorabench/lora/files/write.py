"""The one writer of adapter files: factors by layer in, names of other programs out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkstemp

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lorabench.base import UserError
from lorabench.engine.failures import system_fault
from lorabench.lora.files import embeddings, metadata, names, stored
from lorabench.lora.files.formats import FORMATS, Format, format_of, lost_in_diffusers
from lorabench.lora.files.precision import DTYPES, Precision, plain
from lorabench.lora.files.tensors import is_finite
from lorabench.lora.parts import Parts

LONGEST_NAME = 255  # bytes, on every usual file system


def write(
    adapter: Parts,
    path: Path | str,
    origin: Mapping[str, str] | None = None,
    format: str = "kohya",
    dtype: str | None = None,
) -> list[str]:
    """Write a .safetensors file; layers whose update is zero are left out.

    Factors are read and cast layer by layer, so that a lazy adapter is never in memory as a whole.

    Args:
        adapter: The adapter.
        path: Path of the file; token embeddings get files of their own in the same folder, except in the store.
        origin: Metadata about the source of the adapter.
        format: "kohya", "diffusers" or "store", see formats.py.
        dtype: "float32", "float16" or "bfloat16"; None keeps the factors as they are.

    Returns:
        The layers that the file has, by component and module path; fused ones by their original name.

    Raises:
        UserError: If the format, the precision or the path is not possible, nothing is left to write, or a number is
            too large for the precision or not finite, as after a training that diverged.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UserError(f"format={format} must be {' or '.join(FORMATS)}; use format='kohya'")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype} must be one of {', '.join(DTYPES)}; use dtype='float16'")
    check_name(path)
    layout = format_of(adapter, format)
    layout.check(adapter)
    precision = Precision(dtype)
    tensors, ranks, scales = _tensors(adapter, layout, precision)
    separate = {} if layout.bundles else embeddings.separate(adapter.tokens, path)
    if layout.bundles:
        tensors |= {key: precision.vectors(key, each) for key, each in embeddings.bundle(adapter.tokens).items()}
    if layout.keeps_all:
        tensors |= {key: plain(each) for key, each in stored.mask_tensors(adapter).items()}
    if not tensors and not separate:
        raise UserError(f"{path.name} would hold no update that is not zero; merge other files or use method=direct")
    notes = {
        **layout.notes(adapter, ranks), **metadata.general(adapter, path, ranks, tensors),
        **(stored.notes(adapter, scales) if layout.keeps_all else {}), **(origin or {}),
    }  # fmt: skip
    if tensors:
        _save(tensors, path, notes)
    for file, (trigger, vectors) in separate.items():
        check_name(file)
        notes = {**(origin or {}), embeddings.TRIGGER: trigger}
        _save({key: precision.vectors(key, each) for key, each in vectors.items()}, file, notes)
    if lost := lost_in_diffusers(adapter, format):
        counts = f"{len(lost)} of {len(adapter.factors)} layers of the transformer"
        print(f"{path.name}: diffusers ignores {counts} in kohya's names; use task.format=diffusers for it",
              file=sys.stderr)  # fmt: skip
    return list(ranks)


def check_name(path: Path) -> None:
    """Raise UserError if a file name is too long for file systems."""
    if len(path.name.encode()) > LONGEST_NAME:
        raise UserError(
            f"output={path.name[:40]}... must have at most {LONGEST_NAME} bytes; use output=merged.safetensors"
        )


def _tensors(
    adapter: Parts, layout: Format, precision: Precision
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, float]]:
    """Return tensors by key, and ranks and scales by component and layer, of all updates that are not zero."""
    keys = layout.keys(adapter)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for layer, factors in layout.layers(adapter):
        if not (is_finite(factors.down) and is_finite(factors.up)):
            raise UserError(
                f"{layer} has values that are not finite numbers: the training diverged; use a smaller lora.lr, or a "
                "smaller method.fit.lr if a merge is learned"
            )
        if factors.is_zero:
            continue
        ranks[layer] = factors.rank
        if factors.scale != 1:
            scales[layer] = factors.scale
        down, up, alpha = keys[layer]
        alpha = factors.rank if alpha == "rank" else alpha
        scaled = factors if alpha is None or factors.rank == alpha else factors.times(factors.rank / alpha)
        tensors[down], tensors[up] = _shaped(layer, *precision.factors(layer, scaled))
        if alpha is not None:
            tensors[f"{down.partition('.')[0]}.alpha"] = torch.tensor(float(alpha))
    return tensors, ranks, scales


def _shaped(layer: str, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of a convolution as [rank, in, k, k] and [out, rank, 1, 1]; those of other layers as given."""
    edge = names.kernel(layer)
    return (down, up) if edge is None else (down.unflatten(1, (-1, edge, edge)), up[..., None, None])


def _save(tensors: Mapping[str, Tensor], path: Path, notes: Mapping[str, str]) -> None:
    """Write to a new file next to the path and rename it, so that no partial file remains; links are followed."""
    target, draft = path.resolve(), None
    try:
        number, name = mkstemp(prefix=".lorabench-", dir=target.parent)
        os.close(number)
        draft = Path(name)
        save_file(dict(tensors), draft, metadata={"format": "pt", **notes})
        _sort_metadata(draft)
        draft.chmod(0o666 & ~umask())  # safetensors leaves a file to its owner only
        draft.replace(target)
    except (OSError, SafetensorError) as error:
        line = f"{path} cannot be written ({error}); use a path in a folder that exists"
        raise UserError(system_fault(error, str(path)) or line) from None
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def umask() -> int:
    """Return the umask of the process, which can only be read by setting it."""
    os.umask(mask := os.umask(0o022))
    return mask


def _sort_metadata(path: Path) -> None:
    """Sort the metadata, which safetensors writes in random order, so that equal adapters give equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) == size:  # else it escapes characters in another way, and stays as it is
            file.seek(8)
            file.write(text)
