"""Checks of a plan against the model and the scorers, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.base import UserError
from lorabench.config.schemas import GenerateSpec
from lorabench.engine.devices import device_name
from lorabench.merging.method import Method
from lorabench.models.families import SDXL, Family
from lorabench.models.layer import Layer
from lorabench.models.layer_map import LayerMap, with_ranks
from lorabench.models.schedulers import check_own_sampler
from lorabench.models.shapes import family_and_guidance
from lorabench.models.shapes import layer_map as model_layers
from lorabench.personalization.training import Output
from lorabench.sampling.rule import Context
from lorabench.scoring.files import MICRO_SCORERS
from lorabench.tasks.plan import Plan


def check_plan(plan: Plan) -> None:
    """Check the device, the methods and the scorers of a plan.

    Raises:
        UserError: If there is no such device, or a method or the scorers do not fit.
    """
    device_name(plan.trainer.accelerator)
    check_methods(plan)
    check_scorers(plan)


def check_methods(plan: Plan) -> None:
    """Check each training against the layers of the model, and each merge against those that its LoRAs will adapt.

    Raises:
        UserError: If a training or a merge does not fit them.
    """
    layer_map = model_layers(plan.model)
    check_model(plan, layer_map)
    seen: dict[str, dict[str, Layer]] = {}
    for row, pair in plan.cells():
        if row.method is not None:
            row.method.training.check(layer_map, plan.lora)
            outputs = plan.trained.outputs(row, pair)
            key = str([(output.shown.role, output.job.ranks(layer_map)) for output in outputs])
            if key not in seen:
                seen[key] = adapted_layers(layer_map, outputs)
            row.method.merge.check(seen[key])


def check_model(plan: Plan, layer_map: LayerMap) -> None:
    """Check the training recipe and the sampling of each method against the family of the model.

    Raises:
        UserError: If the model has no such noise levels, guidance or text layers.
    """
    recipe, (family, kind) = plan.lora, family_and_guidance(plan.model)
    flow = family != SDXL
    if flow and recipe.min_snr is not None:
        raise UserError("lora.min_snr weighs the timesteps of DDPM models; use lora.min_snr=null")
    if not flow and recipe.timesteps != "uniform":
        raise UserError(f"lora.timesteps={recipe.timesteps} needs a flow-matching model; use lora.timesteps=uniform")
    if recipe.text_encoders and not layer_map.trained_text():
        raise UserError("lora.text_encoders=true is not supported for this model; use lora.text_encoders=false")
    check_generation(plan.generation, family, kind)
    for row, pair in plan.cells():
        if row.method is not None:
            context = plan.trained.context(tuple(output.shown.role for output in plan.trained.outputs(row, pair)))
            check_rule(row.method, row.name, context, family, kind)


def check_generation(spec: GenerateSpec, family: Family, kind: str) -> None:
    """Check the settings of image generation against a model.

    Args:
        spec: The settings.
        family: Family of the model.
        kind: Its kind of guidance.

    Raises:
        UserError: If it has no such sampler or guidance.
    """
    if family != SDXL:
        check_own_sampler(spec.sampler)
    if kind != "cfg" and spec.negative:
        raise UserError(
            f"generate.negative has no effect on a model whose guidance is {kind}; use generate.negative=null"
        )
    if kind == "none" and spec.guidance > 1:
        raise UserError(f"generate.guidance={spec.guidance:g} has no effect on this model; use 1")


def check_rule(method: Method, name: str, context: Context, family: Family, kind: str) -> None:
    """Check the training and the sampling rule of a method against a model.

    Args:
        method: The method.
        name: Its name in the message.
        context: Adapters and sampling steps.
        family: Family of the model.
        kind: Its kind of guidance.

    Raises:
        UserError: If the model has no prompts by adapter, or no sums of predictions.
    """
    if family == SDXL:
        return
    check_one_prompt(method, name, context)
    if kind != "cfg" and method.sampling.branches(context) is not None:
        raise UserError(
            f"{name} sums predictions with and without the prompt, and the guidance of this model is {kind}; "
            "use model.true_guidance=true or another method"
        )


def check_one_prompt(method: Method, name: str, context: Context) -> None:
    """Check that all adapters of a method read one prompt, for models with joint attention.

    Args:
        name: Name of the method in the message.
        context: Adapters and sampling steps.

    Raises:
        UserError: If its training or its sampling gives each adapter a prompt of its own.
    """
    trained_apart = getattr(method.training, "prompt_separation", False)
    if trained_apart or any(branch.own for branch in method.sampling.branches(context) or ()):
        blocks = " method.dedicated=depth" if getattr(method.training, "dedicated", "") == "names" else ""
        raise UserError(
            f"{name} gives each LoRA its own prompt, which needs cross-attention, and this model has joint attention; "
            f"use ablation=no_prompt_separation{blocks}, or an SDXL model"
        )


def adapted_layers(layer_map: LayerMap, outputs: Sequence[Output]) -> dict[str, Layer]:
    """Return the layers that adapters will adapt."""
    ranks = [output.job.ranks(layer_map) for output in outputs]
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
