"""The artifacts of task=hypernetwork, and the functions that compute them in worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lorabench.config.schemas import TrainerSpec
from lorabench.config.task_schemas import HypernetworkTask
from lorabench.data.pairs import Pair
from lorabench.engine.artifact import Artifact
from lorabench.engine.work import Progress, Resumable
from lorabench.models.files import ModelFiles
from lorabench.tasks.jobs import load_model
from lorabench.tasks.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors, LoRA
    from lorabench.merging.methods.ziplora import ZipLoRA
    from lorabench.models.layer import Layer

VERSION = 1  # raise it when results change
FILE, HELD_OUT = "hypernetwork.safetensors", "held_out.csv"
DIRECT, PREDICTED, MEAN = "direct merge", "predicted masks", "mean of each layer"  # masks in held_out.csv


def training(plan: Plan, task: HypernetworkTask, pairs: Sequence[Pair], loras: Mapping[str, Artifact]) -> Artifact:
    """Return the artifact of the trained hypernetwork."""
    from lorabench.merging.hypernetwork_training import epoch_of

    params = {
        "model": plan.trained.model_params(), "pairs": [[concept.name for concept in pair.concepts] for pair in pairs],
        "prompts": [pair.prompt for pair in pairs], "epochs": task.epochs, "lr": task.lr,
        "lambda": task.lambda_similarity, "layers": task.layers, "seed": plan.seed,
    }  # fmt: skip
    paths = {name: plan.path(item) / "lora.safetensors" for name, item in loras.items()}
    steps = task.epochs * epoch_of(pairs)
    work = Resumable(partial(train, plan.model, plan.model_name, plan.trainer, task, pairs, paths, plan.seed))
    return Artifact(
        "hypernetwork", plan.model_name, VERSION, params, work, inputs_of(pairs, loras), steps, 10.0 * steps * 2
    )


def checking(plan: Plan, task: HypernetworkTask, trained: Artifact, loras: Mapping[str, Artifact]) -> Artifact:
    """Return the artifact of the losses on the held-out pairs."""
    pairs = [[concept.name for concept in pair.concepts] for pair in plan.pairs]
    params = {"draws": task.draws, "seed": plan.seed, "pairs": pairs}
    inputs = {"hypernetwork": [trained], **inputs_of(plan.pairs, loras)}
    paths = {name: plan.path(item) / "lora.safetensors" for name, item in loras.items()}
    file = plan.path(trained) / FILE
    work = partial(check, plan.model, plan.trainer, task, plan.pairs, paths, file, plan.seed)
    count = len(plan.pairs)
    return Artifact("held_out", plan.model_name, VERSION, params, work, inputs, count, 12.0 * count * task.draws)


def inputs_of(pairs: Sequence[Pair], loras: Mapping[str, Artifact]) -> dict[str, list[Artifact]]:
    """Return the artifacts of the pairs' LoRAs, in order."""
    return {"loras": [loras[concept.name] for pair in pairs for concept in pair.concepts]}


def train(
    model: ModelFiles, name: str, trainer: TrainerSpec, task: HypernetworkTask, pairs: Sequence[Pair],
    paths: Mapping[str, Path], seed: int, scratch: Path, folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """Train the hypernetwork; write hypernetwork.safetensors, its loss curves and its cost into the folder."""
    from lorabench.engine.checkpoint import Checkpoint
    from lorabench.engine.costs import cost
    from lorabench.engine.curves import Curves
    from lorabench.lora.adapter import LoRA
    from lorabench.merging import hypernetwork_training as hypernetwork

    base, curves = load_model(model, trainer.accelerator), Curves()
    loras = {concept: LoRA.load(path) for concept, path in paths.items()}
    checkpoint = Checkpoint(scratch, trainer.checkpoint_every, curves)
    with cost(folder, base.denoiser):
        network = hypernetwork.train(
            base,
            pairs,
            loras,
            task.epochs,
            task.lr,
            loss_of(task),
            seed,
            trainer,
            progress,
            checkpoint,
            curves,
        )
    names = {
        role: sorted({concept.name for pair in pairs for concept in pair.of(role)}) for role in ("content", "style")
    }
    settings = {key: getattr(task, key) for key in ("epochs", "lr", "lambda_similarity", "layers")}
    network.save(folder / FILE, {"model": name, "trained_on": names, "seed": seed, **settings})
    curves.write(folder)


def check(
    model: ModelFiles, trainer: TrainerSpec, task: HypernetworkTask, pairs: Sequence[Pair], paths: Mapping[str, Path],
    file: Path, seed: int, folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """Write held_out.csv: one row per pair, kind of masks and term of the loss."""
    from lorabench.lora.adapter import LoRA
    from lorabench.merging.hypernetwork import load
    from lorabench.merging.hypernetwork_training import held_out

    base, network = load_model(model, trainer.accelerator), load(file)
    rows = []
    for done, pair in enumerate(pairs, 1):
        loras: list[LoRA] = [LoRA.load(paths[concept.name]) for concept in pair.concepts]
        found = held_out(base, pair, loras, masks_to_compare(network), loss_of(task), task.draws, seed)
        rows += [(pair.name, kind, term, loss) for kind, terms in found.items() for term, loss in terms.items()]
        progress(done)
    pd.DataFrame(rows, columns=["pair", "masks", "term", "loss"]).to_csv(folder / HELD_OUT, index=False)


def loss_of(task: HypernetworkTask) -> ZipLoRA:
    """Return ZipLoRA's loss with the settings of the task."""
    from lorabench.merging.hypernetwork_training import zip_loss

    return zip_loss(task.lambda_similarity, task.layers)


def masks_to_compare(network: Any) -> dict[str, Any]:
    """Return the functions from a layer's updates to its masks, by name."""

    def predicted(updates: Sequence[Factors], layer: Layer) -> list[Tensor]:
        network.to(updates[0].down.device)
        return network(updates, layer.roles)

    def mean(updates: Sequence[Factors], layer: Layer) -> list[Tensor]:
        return [mask.mean().expand_as(mask) for mask in predicted(updates, layer)]

    def ones(updates: Sequence[Factors], layer: Layer) -> list[Tensor]:
        return [each.down.new_ones(layer.in_features) for each in updates]

    return {DIRECT: ones, PREDICTED: predicted, MEAN: mean}
