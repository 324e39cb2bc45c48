"""The settings of Inspiration Tree (see lorabench.personalization.inspiration_tree), without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tree:
    """Settings of the search for two tokens.

    Args:
        siblings: Images sampled with the token of a single image.
        kept: Number of them from which the two tokens are learned.
        candidates: Seeds that are tried.
        trial: Share of the steps after which they are compared.
        samples: Images sampled per token to compare them.
    """

    siblings: int
    kept: int
    candidates: int
    trial: float
    samples: int

    def trial_steps(self, steps: int) -> int:
        """Return the optimizer steps of a candidate, of `steps` for the best one."""
        return max(1, round(self.trial * steps))

    def steps(self, steps: int, images: int) -> int:
        """Return all optimizer steps, given those of one training and the number of images.

        >>> Tree(40, 10, 4, 0.2, 40).steps(1000, images=1)
        2600
        """
        root = steps if images == 1 else 0
        return root + (self.candidates - 1) * self.trial_steps(steps) + steps

    @staticmethod
    def caption(*triggers: str) -> str:
        """Return the caption of images and the prompt of samples.

        >>> Tree.caption("<left>", "<right>")
        'a <left> <right>'
        """
        return " ".join(["a", *triggers])
