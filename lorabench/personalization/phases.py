"""Order of the updates of both adapters in a training on aligned images; see `personalization/aligned.py`.

A step updates the content and, after the first third of the steps, also the style (step 250 of 750 in the released
code).
"""

from lorabench.config.recipe import check_without
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES, Role

STYLE_FROM = 1 / 3  # share of the steps


def updates(steps: int) -> int:
    """Return the number of updates of both adapters in a training of `steps` steps.

    >>> updates(750)
    1250
    """
    return 2 * steps - style_start(steps)


def style_start(steps: int) -> int:
    """Return the first step that updates the style."""
    return int(steps * STYLE_FROM)


def phase(update: int, steps: int) -> tuple[Role, int]:
    """Return the adapter and the step of an update.

    >>> [phase(update, 3) for update in range(updates(3))]
    [('content', 0), ('content', 1), ('style', 1), ('content', 2), ('style', 2)]
    """
    start = style_start(steps)
    if update < start:
        return "content", update
    return ROLES[(update - start) % 2], start + (update - start) // 2


def check_aligned(spec: LoRASpec) -> None:
    """Raise a UserError if a recipe has a setting that this training does not use."""
    check_without(spec, "a training on aligned pictures")
