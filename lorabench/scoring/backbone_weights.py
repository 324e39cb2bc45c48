"""Weights of published backbones: a file that is given, else the hub's cache on this machine, else the hub.

Pickles (.pth, .pt, .bin) are converted once into safetensors, in the hub's folder for assets (HF_ASSETS_CACHE).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.models.hub import quiet_hub

PICKLES = (".pth", ".pt", ".bin", ".ckpt")


def find_weights(config: Mapping[str, Any], key: str, given: str | None) -> Path:
    """The safetensors of a published backbone.

    config: its description, with weights {hub, file, sha256}; sha256 where the published file is a pickle.
    key: its key in `scorers.weights`.  given: the value there.
    """
    if given is None:
        return converted(fetch(config, key), config, config["weights"].get("sha256"))
    path = Path(given).expanduser()
    if not path.is_file() or path.suffix not in (".safetensors", *PICKLES):
        what = "is no safetensors file" if path.is_file() else "is no file"
        raise UserError(f"scorers.weights.{key}={given} {what}; {by_hand(config, key)}")
    return converted(path, config)


def fetch(config: Mapping[str, Any], key: str) -> Path:
    """The published file in the hub's cache, downloaded if it is not there yet."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub, file = config["weights"]["hub"], config["weights"]["file"]
    cached = try_to_load_from_cache(hub, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        with quiet_hub():
            return Path(hf_hub_download(hub, file))
    except (OSError, ValueError) as error:
        unreachable = isinstance(error, LocalEntryNotFoundError)
        reason = "the hub cannot be reached" if unreachable else str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"the weights of {config['name']} are not here and cannot be fetched ({reason}); {by_hand(config, key)}"
        ) from None


def by_hand(config: Mapping[str, Any], key: str) -> str:
    source = config["weights"]
    return f"get {source['file']} of the hub's {source['hub']} and type scorers.weights.{key}=<that file>"


def converted(path: Path, config: Mapping[str, Any], sha256: str | None = None) -> Path:
    """The file itself, or the safetensors made of a pickle, once for each size and time of change.

    sha256: what the pickle has to be; None is whatever fits the architecture.
    """
    if path.suffix not in PICKLES:
        return path
    from huggingface_hub import cached_assets_path

    stat = path.resolve().stat()
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    name = f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    target = cached_assets_path("lorabench", "scorers", config["name"].replace("@", "_")) / name
    if not target.is_file():
        if sha256:
            check_sha256(path, sha256)
        from lorabench.scoring.pickles import convert

        convert(path, target, config)
    return target


def check_sha256(path: Path, expected: str) -> None:
    """UserError unless the file has this hash."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{path} has sha256 {found[:12]}, the published file {expected[:12]}; delete it and fetch it again"
        )
