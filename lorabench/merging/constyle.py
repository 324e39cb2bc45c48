"""Constyle, the cycle of DuoLoRA (arXiv 2504.13206), one way round for the images of each LoRA.

    L_cycle_style   = || I_cc - I_csc ||^2      content image: add style, remove style
    L_cycle_content = || I_ss - I_scs ||^2      style image: add content, remove content

Both ways are one step at one timestep. Adding gives a prediction under the combined prompt p_cs and from it a clean
estimate, which is noised again with the same eps and t; removing is a prediction from that under the image's own
prompt.

`constyle: through_merge`, the paper's words: the merged adapter adds, the image's own LoRA removes, and the result is
compared with that LoRA's own prediction of the image. The gradient flows through the removing pass into the adding one,
the only one with masks: a mask learns what of the other concept stays when it should be gone.

`constyle: detached`, the released code: the other LoRA alone adds, nothing of the way round has a gradient, and its end
is the target of the merged prediction of the image. The masks then learn to imitate the detour instead of shortening
it. The released code also removes with the LoRA that added (`remove_with: other`), so that its target is an image with
the other concept added twice.

`cycle_in: image` compares decoded clean estimates instead of predictions; a decoder pass each, with gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lorabench.data.pairs import Role
from lorabench.merging.step import MergeStep, Noised

CYCLES: dict[Role, str] = {"content": "style_cycle", "style": "content_cycle"}  # the cycle of a role's images


class Answer(NamedTuple):
    """A prediction with what it was made from."""

    noised: Noised
    prediction: Tensor


def constyle(
    step: MergeStep, weights: Mapping[Role, float], through_merge: bool, own_removes: bool, in_image: bool
) -> tuple[dict[str, Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The cycle terms [pairs], and the merged predictions and the targets of the reconstruction.

    All in three forwards: the teachers, the merge, the removing LoRAs; what adds is rows of the merge's forward, or of
    the teachers' where other LoRAs than the merge add.
    weights: of the cycle of a role's images; 0 leaves it out.
    """
    count = len(step.images)
    cycles = [k for k, role in enumerate(step.roles) if weights[role]]
    starts = [step.images[k].under(step.both) for k in cycles]
    others = [[j for j in range(count) if step.roles[j] != step.roles[k]] for k in cycles]
    removers = [[k] if own_removes else other for k, other in zip(cycles, others, strict=True)]

    if through_merge:
        targets = step.teachers()
        merged = step.merged(*step.images, *starts)
        predictions = merged[:count]
        ends = go_back(step, cycles, starts, merged[count:], removers)
        starts_of = [Answer(step.images[k], targets[k]) for k in cycles]
    else:
        with torch.no_grad():  # the teachers and what adds share a forward
            answers = step.alone((*step.images, *starts), [*((k,) for k in range(count)), *others])
            targets = answers[:count]
            ends = go_back(step, cycles, starts, answers[count:], removers)
        predictions = step.merged(*step.images)
        starts_of = [Answer(step.images[k], predictions[k]) for k in cycles]

    terms: dict[str, Tensor] = {}
    for k, start, end in zip(cycles, starts_of, ends, strict=True):
        name, weight = CYCLES[step.roles[k]], weights[step.roles[k]]
        error = weight * (image_error(step, start, end) if in_image else step.mse(start.prediction, end.prediction))
        terms[name] = terms[name] + error if name in terms else error
    return terms, predictions, targets


def go_back(
    step: MergeStep,
    cycles: Sequence[int],
    starts: Sequence[Noised],
    added: Sequence[Tensor],
    removers: Sequence[Sequence[int]],
) -> list[Answer]:
    """Noise the clean estimates of what was added again and remove it, under each image's own prompt."""
    there = [
        step.renoised(start, prediction, step.images[k].prompt)
        for k, start, prediction in zip(cycles, starts, added, strict=True)
    ]
    return [Answer(*each) for each in zip(there, step.alone(there, removers), strict=True)]


def image_error(step: MergeStep, left: Answer, right: Answer) -> Tensor:
    """Mean squared error of the decoded clean estimates [pairs]."""
    return step.mse(*(step.model.decode(step.clean(*answer)) for answer in (left, right)))
