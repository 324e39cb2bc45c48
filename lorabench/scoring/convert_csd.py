"""Convert CSD's published checkpoint to safetensors.

    python -m lorabench.scoring.convert_csd pytorch_model.bin csd.safetensors

The result is half as large, loads faster and contains no pickle. Use it with scorers.weights.csd_vitl14. A run that
gets the checkpoint itself converts it into its cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lorabench.base import UserError
from lorabench.scoring.description import read_config
from lorabench.scoring.files import backbones
from lorabench.scoring.pickles import convert


def main(arguments: list[str]) -> int:
    """Convert a published CSD file to safetensors."""
    if len(arguments) != 3 or not arguments[2].endswith(".safetensors"):
        print("use: python -m lorabench.scoring.convert_csd <checkpoint.pth> <csd.safetensors>", file=sys.stderr)
        return 2
    checkpoint, target = Path(arguments[1]), Path(arguments[2])
    try:
        convert(checkpoint, target, read_config(backbones()["csd@vitl14"]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{target}: use scorers=real scorers.weights.csd_vitl14={target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
