"""Find the weights of published backbones: a given file, else the hub's cache on this machine, else the hub.

Pickles (.pth, .pt, .bin) are converted once to safetensors in the hub's assets folder (HF_ASSETS_CACHE).
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
    """Return the safetensors of a published backbone.

    Args:
        config: Its description, with weights {hub, file, sha256}; sha256 only if the published file is a pickle.
        key: Its key in `scorers.weights`.
        given: The value of this key.
    """
    if given is None:
        return converted(fetch(config, key), config, config["weights"].get("sha256"))
    path = Path(given).expanduser()
    if not path.is_file() or path.suffix not in (".safetensors", *PICKLES):
        raise UserError(
            f"scorers.weights.{key}={given} must be a .safetensors file or a checkpoint; {by_hand(config, key)}"
        )
    return converted(path, config)


def fetch(config: Mapping[str, Any], key: str) -> Path:
    """Return the published file from the hub's cache; download it if necessary."""
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
            f"the weights of {config['name']} are not on this machine and cannot be downloaded ({reason}); "
            f"{by_hand(config, key)}"
        ) from None


def by_hand(config: Mapping[str, Any], key: str) -> str:
    """Return the advice to give a file for a backbone."""
    source = config["weights"]
    return f"get {source['file']} of the hub's {source['hub']} and use scorers.weights.{key}=<that file>"


def converted(path: Path, config: Mapping[str, Any], sha256: str | None = None) -> Path:
    """Return the file itself, or the cached safetensors of a pickle, keyed by its path, size and time.

    Args:
        sha256: Expected hash of the pickle. None: accept any file that fits the architecture.
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
    """Raise a UserError unless the file has this hash."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{path} has sha256 {found[:12]}, the published file {expected[:12]}; delete it and download it again"
        )
