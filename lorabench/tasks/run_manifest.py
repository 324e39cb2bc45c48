"""The content of a run's manifest: its rows, keys, losses, costs and versions."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from lorabench.base import __version__
from lorabench.data.catalogue import world_version
from lorabench.engine.artifact import Artifact, closure
from lorabench.engine.costs import COMPUTED_ON, COST_FILE, joined_costs
from lorabench.engine.record import key_of
from lorabench.merging.presets import GROUPS
from lorabench.models.shapes import layer_map
from lorabench.personalization.training import backbone_of, is_per_pair
from lorabench.report.labels import label
from lorabench.tasks.checks import adapted_layers
from lorabench.tasks.jobs import CURVES_FILE, NOTES_FILE
from lorabench.tasks.plan import STAGES, Plan
from lorabench.tasks.rows import BASELINES, ORACLE, Row

PACKAGES = (
    "torch", "diffusers", "transformers", "peft", "pytorch-lightning", "hydra-core", "open_clip_torch",
    "timm", "numpy", "pillow",
)  # fmt: skip


def chosen_rows(plan: Plan) -> list[Row]:
    """Return the rows that the user chose: one of a benchmark (which may be a baseline), or several."""
    return [row for row in plan.rows if row.name not in (*BASELINES, ORACLE)] or plan.rows[-1:]


def baseline_rows(plan: Plan) -> list[Row]:
    """Return the baseline and oracle rows."""
    chosen = chosen_rows(plan)
    return [row for row in plan.rows if row not in chosen]


def options_of(row: Row) -> dict[str, str]:
    """Return the training, the merge and the sampling of a row; empty names for the oracle."""
    return dict(row.method.options) if row.method else dict.fromkeys(GROUPS, "")


def manifest_of(plan: Plan, seconds: float) -> dict[str, Any]:
    """Return the manifest of a run.

    Timings are seconds of computing, summed over the artifacts, whichever run computed them. A run of several methods
    has a list `rows` with one entry per method, and the keys of the baseline and oracle rows separately.

    Args:
        plan: The plan of the run.
        seconds: Time that this run took to compute missing artifacts.
    """
    stages = {stage: plan.artifacts(stage) for stage in STAGES}
    rows = [row_entry(plan, row) for row in chosen_rows(plan)]
    return {
        **(rows[0] if len(rows) == 1 else {"rows": rows, "keys": keys_of(plan, baseline_rows(plan))}),
        "dataset": plan.dataset.name,
        "world": world_version(plan.dataset),
        "model": plan.model_name,
        "targets": plan.lora.targets,
        "seed": plan.seed,
        "timings": {stage: sum(cost_of(plan, item).get("seconds", 0.0) for item in stages[stage]) for stage in STAGES},
        "wall_seconds": seconds,
        "inputs": inputs_of(plan),
        "computed_on": computed_on(plan, stages),
        "left_out_scenes": plan.left_out,
        "versions": versions(),
    }


def row_entry(plan: Plan, row: Row) -> dict[str, Any]:
    """Return the manifest's entry of one method; for a single method also with the keys of the other rows."""
    several = len(chosen_rows(plan)) > 1
    own = replace(plan, rows=[row]) if several else plan
    return {
        **({"settings": row.own.settings, "label": label(row.name, row.ablation)} if several else {}),
        "method": row.name,
        "ablation": row.ablation,
        **options_of(row),
        **({"trained_on": seen} if (seen := seen_concepts(plan, row)) else {}),
        **({"note": note} if (note := merge_note(plan, row)) else {}),
        **({"trainings": notes} if (notes := training_notes(plan, row)) else {}),
        "costs": row_costs(plan, row),
        "losses": {item.name: curves_of(own, item) for item in own.artifacts("merge") if curves_of(own, item)},
        "keys": keys_of(plan, own.rows),
    }


def training_notes(plan: Plan, row: Row) -> dict[str, Any]:
    """Return the facts that the trainings of a row report besides their adapters, by name."""
    loras = [each.artifact for pair in plan.pairs for each in plan.trained.loras(row, pair)] if row.method else []
    files = {each.name: plan.path(each) / NOTES_FILE for each in loras}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def seen_concepts(plan: Plan, row: Row) -> list[str]:
    """Return the subjects and styles of the run that files of the row's merge were trained on."""
    names = {concept.name for pair in plan.pairs for concept in pair.concepts}
    return sorted(names & row.own.merge.trained_on()) if row.method else []


def merge_note(plan: Plan, row: Row) -> str | None:
    """Return the sentence on the row's merge on the layers of the model, or None."""
    if row.method is None:
        return None
    outputs = plan.trained.outputs(row, plan.pairs[0])
    return row.method.merge.note(adapted_layers(layer_map(plan.model), outputs))


def keys_of(plan: Plan, rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return the keys of rows by stage and artifact name. The store keeps these artifacts."""
    own = replace(plan, rows=list(rows))
    return {stage: {item.name: item.key for item in own.artifacts(stage)} for stage in STAGES}


def inputs_of(plan: Plan) -> dict[str, str]:
    """Return hashes of images and weights: runs with different ones cannot be compared (report/pooling.py)."""
    concepts = {concept.name: concept for pair in plan.pairs for concept in pair.concepts}
    images = {f"the images of {name}": key_of("images", each.identity()) for name, each in concepts.items()}
    return {"the weights of the model": plan.weights, **images}


def computed_on(plan: Plan, stages: Mapping[str, Sequence[Artifact]]) -> list[str]:
    """Return the devices and numbers of threads that computed the artifacts: they change last digits."""
    costs = [cost_of(plan, each) for artifacts in stages.values() for each in artifacts]
    return sorted({place for cost in costs for place in cost.get(COMPUTED_ON, "").split("; ") if place})


def row_costs(plan: Plan, row: Row) -> dict[str, float]:
    """Return the costs per LoRA, merge and image of a row: means over LoRAs and pairs, and maxima of peak memory.

    LoRAs that other rows share are not part of the cost of a merge. A training for a single pair is, such as that of an
    expert encoder. A backbone, which all pairs share, has a cost of its own.
    """
    trained = [
        {lora.artifact.key: cost_of(plan, lora.artifact) for lora in plan.trained.loras(row, p)} for p in plan.pairs
    ]
    loras = {key: cost for of_pair in trained for key, cost in of_pair.items()}
    generated = [cost_of(plan, plan.generate(row, pair)) for pair in plan.pairs]
    images = sum(len(plan.seeds(pair)) for pair in plan.pairs)
    costs = {
        **mean_cost("lora_seconds", "seconds", list(loras.values())),
        **backbone_cost(plan, row),
        **mean_cost("seconds_per_image", "seconds", generated, images),
        **mean_cost("denoiser_passes_per_image", "denoiser_passes", generated, images),
    }
    if row.is_method:
        merged = [cost_of(plan, plan.merge(row, pair)) for pair in plan.pairs]
        if is_per_pair(row.own.training.outputs(plan.pairs[0], plan.lora)):
            parts = zip(merged, trained, strict=True)
            merged = [joined_costs([merge, *of_pair.values()]) for merge, of_pair in parts]
            costs.pop("lora_seconds", None)
        if encoders := [cost_of(plan, each) for pair in plan.pairs for each in plan.encoder(row, pair)]:
            merged = [joined_costs(several) for several in zip(merged, encoders, strict=True)]
        costs["learned_parameters"] = merged[0]["learned_parameters"]
        costs |= mean_cost("merge_seconds", "seconds", merged)
        costs |= mean_cost("merge_denoiser_passes", "denoiser_passes", merged)
        for peak in ("peak_bytes", "peak_gpu_bytes"):
            if all(peak in each for each in merged):
                costs[f"merge_{peak}"] = max(each[peak] for each in merged)
    return costs


def backbone_cost(plan: Plan, row: Row) -> dict[str, float]:
    """Return the seconds to train the base weights of a row, with the images that they are trained on.

    They are spent once per model, whatever the number of pairs. Empty for a row on the plain model.
    """
    job = backbone_of(plan.trained.outputs(row, plan.pairs[0])) if row.method else None
    if job is None:
        return {}
    spent = [cost_of(plan, each) for each in closure([plan.trained.training(job)]).values()]
    return mean_cost("backbone_seconds", "seconds", spent, 1)


def mean_cost(name: str, cost: str, costs: Sequence[dict[str, Any]], count: int | None = None) -> dict[str, float]:
    """Return {name: mean of one cost}; empty if an artifact has no such cost.

    Args:
        name: Name of the result.
        cost: Name of the cost.
        costs: Costs of the artifacts.
        count: Divisor of the sum; None: the number of artifacts.
    """
    known = costs and all(cost in each for each in costs)
    return {name: sum(each[cost] for each in costs) / (count or len(costs))} if known else {}


def cost_of(plan: Plan, artifact: Artifact) -> dict[str, Any]:
    """Return the costs of an artifact; empty if they were not measured."""
    file = plan.path(artifact) / COST_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def curves_of(plan: Plan, artifact: Artifact) -> dict[str, list[float]]:
    """Return each loss term's value per step; empty for an artifact that was not trained."""
    file = plan.path(artifact) / CURVES_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def versions() -> dict[str, str]:
    """Return the versions of lorabench, Python and the packages that change results."""
    ours = {"lorabench": __version__, "python": platform.python_version()}
    return ours | {package: metadata.version(package) for package in PACKAGES}
