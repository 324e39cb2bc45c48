"""Checks of a plan against the model and the scorers, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.models.layer import Layer
from lorabench.models.layer_map import LayerMap, with_ranks
from lorabench.models.shapes import layer_map as model_layers
from lorabench.personalization.training import Output
from lorabench.scoring.files import MICRO_SCORERS
from lorabench.tasks.plan import Plan


def check_methods(plan: Plan) -> None:
    """Check each merge against the layers that its LoRAs will adapt, with the ranks and roles of its training.

    Raises:
        UserError: If a merge does not fit them.
    """
    layer_map = model_layers(plan.model)
    seen: dict[str, dict[str, Layer]] = {}
    for row, pair in plan.cells():
        if row.method is not None:
            outputs = plan.outputs(row, pair)
            key = str([(output.shown.role, output.rank, list(output.blocks), output.targets) for output in outputs])
            if key not in seen:
                seen[key] = adapted_layers(layer_map, outputs)
            row.method.merge.check(seen[key])


def adapted_layers(layer_map: LayerMap, outputs: Sequence[Output]) -> dict[str, Layer]:
    """Return the layers that adapters will adapt."""
    ranks = [dict.fromkeys(layer_map.trained(output.blocks, output.targets), output.rank) for output in outputs]
    return with_ranks(layer_map, ranks, [output.shown.role for output in outputs])


def check_scorers(plan: Plan) -> None:
    """Check that the weights of scorers fit their architectures.

    Raises:
        UserError: If they do not fit.
    """
    for files in plan.scorers.scorers:
        if not files.weights.is_relative_to(MICRO_SCORERS):  # the tests check these
            from lorabench.scoring.load import check_scorer

            check_scorer(files)
