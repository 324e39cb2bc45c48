"""Constyle, the cycle loss of DuoLoRA (arXiv 2504.13206), with one cycle for the images of each LoRA.

    L_cycle_style   = || I_cc - I_csc ||^2      content image: add style, remove style
    L_cycle_content = || I_ss - I_scs ||^2      style image: add content, remove content

Adding and removing are one step each, at the same timestep. The first step predicts under the combined prompt p_cs. Its
clean estimate is noised with the same eps and t, and the second step predicts from that under the image's own prompt.

`constyle: through_merge` follows the paper's text: the merged adapter adds, the image's own LoRA removes, and the
result is compared with that LoRA's own prediction of the image. The gradient flows through the removing pass into the
adding pass, the only one with masks. So a mask learns which parts of the other concept remain after the removal.

`constyle: detached` follows the released code: the other LoRA without the merge adds, the cycle has no gradient, and
its result is the target of the merged prediction of the image. Then the masks learn to imitate the cycle instead of
closing it. The released code also removes with the LoRA that added (`remove_with: other`), so that its target is an
image with the other concept added twice.

`cycle_in: image` compares decoded clean estimates instead of predictions, at the cost of decoder passes with gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lorabench.data.concepts import Role
from lorabench.merging.step import MergeStep, Noised

CYCLES: dict[Role, str] = {"content": "style_cycle", "style": "content_cycle"}  # the cycle of a role's images


class Answer(NamedTuple):
    """A prediction and its input."""

    noised: Noised
    prediction: Tensor


def constyle(
    step: MergeStep, weights: Mapping[Role, float], through_merge: bool, own_removes: bool, in_image: bool
) -> tuple[dict[str, Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Compute the cycle terms of a step.

    This takes three forward passes: of the teachers, of the merge, and of the removing LoRAs. The adding step is a part
    of the batch of the merge, or of the teachers if other LoRAs than the merge add.

    Args:
        step: Random draws of the step and the model.
        weights: Weight of the cycle of a role's images; 0 omits the cycle.
        through_merge: Add with the merged adapter, with gradients.
        own_removes: Remove with the image's own LoRA instead of the one that added.
        in_image: Compare decoded images instead of predictions.

    Returns:
        The terms [pairs] by name, and the merged predictions and targets of the reconstruction loss.
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
        ends = remove(step, cycles, starts, merged[count:], removers)
        starts_of = [Answer(step.images[k], targets[k]) for k in cycles]
    else:
        with torch.no_grad():  # teachers and adding LoRAs in one forward pass
            answers = step.unmasked((*step.images, *starts), [*((k,) for k in range(count)), *others])
            targets = answers[:count]
            ends = remove(step, cycles, starts, answers[count:], removers)
        predictions = step.merged(*step.images)
        starts_of = [Answer(step.images[k], predictions[k]) for k in cycles]

    terms: dict[str, Tensor] = {}
    for k, start, end in zip(cycles, starts_of, ends, strict=True):
        name, weight = CYCLES[step.roles[k]], weights[step.roles[k]]
        error = weight * (image_error(step, start, end) if in_image else step.mse(start.prediction, end.prediction))
        terms[name] = terms[name] + error if name in terms else error
    return terms, predictions, targets


def remove(
    step: MergeStep,
    cycles: Sequence[int],
    starts: Sequence[Noised],
    added: Sequence[Tensor],
    removers: Sequence[Sequence[int]],
) -> list[Answer]:
    """Noise the clean estimates of the adding step again and predict with the removing LoRAs.

    Args:
        step: Random draws of the step and the model.
        cycles: Index of the images in each cycle.
        starts: Inputs of the adding step.
        added: Predictions of the adding step.
        removers: Indices of the LoRAs that remove, for each cycle.

    Returns:
        The predictions under each image's own prompt.
    """
    noised = [
        step.renoised(start, prediction, step.images[k].prompt)
        for k, start, prediction in zip(cycles, starts, added, strict=True)
    ]
    return [Answer(*each) for each in zip(noised, step.unmasked(noised, removers), strict=True)]


def image_error(step: MergeStep, left: Answer, right: Answer) -> Tensor:
    """Return the mean squared error of the decoded clean estimates, [pairs]."""
    return step.mse(*(step.model.decode(step.clean(*answer)) for answer in (left, right)))
