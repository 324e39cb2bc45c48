"""Random draws of images with weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_weighted(weights: Sequence[int], count: int, generator: torch.Generator, passes: int = 1) -> Tensor:
    """Draw indices with replacement.

    Args:
        weights: Relative frequency of each image.
        count: Number of indices.
        passes: Number of passes over the images, such as 2 if mirrored images follow the others.

    Returns:
        [count], each between 0 and passes * len(weights) - 1. With weights of 1 all are equally likely.
    """
    ends = torch.tensor(list(weights)).cumsum(0)
    positions = torch.randint(passes * int(ends[-1]), (count,), generator=generator)
    number, position = positions // ends[-1], positions % ends[-1]
    return number * len(weights) + torch.searchsorted(ends, position, right=True)
