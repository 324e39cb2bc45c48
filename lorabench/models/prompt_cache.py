"""The most recently encoded prompts of a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from lorabench.models.conditioning import Conditioning

PROMPTS_KEPT = 256  # 160 MB for SDXL in fp32

Encode = Callable[[Sequence[str]], Mapping[str, Conditioning]]  # each prompt in a batch of its own


class PromptCache:
    """One row per prompt. The least recently used rows are dropped."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def rows(self, prompts: Sequence[str], encode: Encode) -> Conditioning:
        """Return one row per prompt.

        Args:
            prompts: Prompts; equal ones are encoded once.
            encode: Function that returns the rows of prompts that are not in the cache.
        """
        known = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        if new := sorted(set(prompts) - known.keys()):
            known |= encode(new)
        for prompt in dict.fromkeys(prompts):
            self._kept[prompt] = known[prompt]
            self._kept.move_to_end(prompt)
        while len(self._kept) > PROMPTS_KEPT:
            self._kept.popitem(last=False)
        return Conditioning.join([known[prompt] for prompt in prompts])

    @contextmanager
    def emptied(self) -> Iterator[None]:
        """Use an empty cache within the block, because the text encoders have changed."""
        kept, self._kept = self._kept, OrderedDict()
        try:
            yield
        finally:
            self._kept = kept
