"""task=hypernetwork: LoRA.rar's hypernetwork (arXiv 2412.05148) for a model, and what it does on pairs it has not seen.

    python run.py task=hypernetwork                                   # for model=micro: minutes on a CPU
    python run.py method=lora_rar method.weights=outputs/adhoc/hypernetwork-s0/hypernetwork.safetensors

LoRAs of `task.subjects` and `task.styles` are trained, then the hypernetwork on their pairs. The held-out pairs are
those of `dataset`; nothing of theirs, nor of any experiment, may be trained on. On them ZipLoRA's loss, averaged over
the same draws, is taken with the predicted masks, with masks of one (the direct merge), and with each layer's mean
predicted mask in all its columns, which tells whether columns matter.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lorabench.base import EXPERIMENTS, UserError
from lorabench.config.dataset_schemas import DatasetSpec, MicroworldSpec
from lorabench.config.schemas import TrainerSpec
from lorabench.config.task_schemas import HypernetworkTask
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import Pair, Prompts
from lorabench.engine.artifact import Artifact
from lorabench.engine.costs import COST_FILE, joined_costs
from lorabench.engine.devices import device_name
from lorabench.engine.make import make
from lorabench.engine.work import Progress
from lorabench.models.files import ModelFiles
from lorabench.personalization.schemes.dreambooth import dreambooth
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.jobs import load_model, nothing
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors, LoRA
    from lorabench.merging.methods.ziplora import ZipLoRA
    from lorabench.models.layer import Layer

VERSION = 1  # raise it when results change
RULE = re.compile(r"\bpairs['\"]?\s*[:=].*\bmatched\b|\b(subjects|styles)['\"]?\s*[:=].*\ball\b")  # in an experiment
FILE, HELD_OUT = "hypernetwork.safetensors", "held_out.csv"
NAIVE, PREDICTED, MEAN = "direct merge", "predicted masks", "mean of each layer"
TRAINS_NOTHING = "calibration"  # the experiment that draws every subject in every style and merges none


def run(cfg: DictConfig, folder: Path) -> str:
    """Write hypernetwork.safetensors, held_out.csv and hypernetwork.md, and print the last."""
    task: Any = OmegaConf.to_object(cfg.task)
    plan = plan_of(cfg, [Row.of("direct")])
    dataset: Any = OmegaConf.to_object(cfg.dataset)
    pairs = training_pairs(task, dataset, Prompts(**cfg.prompts))
    check_single([*pairs, *plan.pairs])
    check_disjoint(pairs, plan.pairs)
    device_name(plan.trainer.accelerator)  # is it there?
    seen, unseen = trainings(plan, pairs), trainings(plan, plan.pairs)
    trained = training(plan, task, pairs, seen)
    checked = checking(plan, task, trained, unseen)
    make(plan.store, plan.trainer, [*seen.values(), *unseen.values(), checked])

    shutil.copyfile(plan.path(trained) / FILE, folder / FILE)
    found = pd.read_csv(plan.path(checked) / HELD_OUT)
    found.to_csv(folder / HELD_OUT, index=False)
    costs = [json.loads((plan.path(item) / COST_FILE).read_text()) for item in (*seen.values(), trained)]
    text = summary(found, costs[:-1], costs[-1], plan.model_name, len(pairs))
    (folder / "hypernetwork.md").write_text(text)
    print(text)
    return FILE


def trainings(plan: Plan, pairs: Sequence[Pair]) -> dict[str, Artifact]:
    """Return the LoRA of each concept, as most methods train it."""
    return {
        concept.name: plan.training(dreambooth(concept, plan.lora).job) for pair in pairs for concept in pair.concepts
    }


def training_pairs(task: HypernetworkTask, dataset: DatasetSpec, prompts: Prompts) -> list[Pair]:
    """Every training subject in every training style, of the same dataset."""
    for key, names in (("subjects", task.subjects), ("styles", task.styles)):
        if not names or len(set(names)) < len(names):
            raise UserError(f"task.{key}={list(names)} must name at least one, each once; use task.{key}=[a,b]")
    chosen: dict[str, Any] = {"contents": None, "subjects": task.subjects, "styles": task.styles}
    chosen["pairs"] = "crossed" if isinstance(dataset, MicroworldSpec) else "all"
    return load_pairs(replace(dataset, **chosen), prompts)


def check_single(pairs: Sequence[Pair]) -> None:
    if several := next((pair.name for pair in pairs if not pair.is_single), None):
        raise UserError(
            f"{several} is no single pair, which a hypernetwork is trained on; leave dataset.contents and + out"
        )


def check_disjoint(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    """Check that training shares no subject and no style with the held-out pairs or with an experiment.

    An experiment uses the names in its file. One that chooses pairs by rule can use every held-out name.

    Raises:
        UserError: If a name is shared.
    """
    from lorabench.data.microworld import HELDOUT_STYLES, HELDOUT_SUBJECTS

    used: dict[str, str] = {}
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        if path.stem != TRAINS_NOTHING:
            text = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
            names = re.findall(r"\w+", text)
            if RULE.search(text):
                names += [*HELDOUT_SUBJECTS, *HELDOUT_STYLES]
            used |= dict.fromkeys(names, f"experiments={path.stem} has")
    used |= {concept.name: "the dataset has" for pair in held_out for concept in pair.concepts}
    for pair in pairs:
        for concept, key in ((pair.contents[0], "subjects"), (pair.styles[0], "styles")):
            if concept.name in used:
                raise UserError(
                    f"{used[concept.name]} {concept.name}, which must then be new to the hypernetwork; "
                    f"leave it out of task.{key}"
                )


def training(plan: Plan, task: HypernetworkTask, pairs: Sequence[Pair], loras: Mapping[str, Artifact]) -> Artifact:
    """The hypernetwork as an artifact of the store."""
    from lorabench.merging.hypernetwork_training import epoch_of

    params = {
        "model": plan.model_params(), "pairs": [[concept.name for concept in pair.concepts] for pair in pairs],
        "prompts": [pair.prompt for pair in pairs], "epochs": task.epochs, "lr": task.lr,
        "lambda": task.lambda_similarity, "layers": task.layers, "seed": plan.seed,
    }  # fmt: skip
    paths = {name: plan.path(item) / "lora.safetensors" for name, item in loras.items()}
    steps = task.epochs * epoch_of(pairs)
    artifact = Artifact(
        "hypernetwork", plan.model_name, VERSION, params, nothing, inputs_of(pairs, loras), steps, 10.0 * steps * 2
    )
    scratch = plan.store.scratch(artifact)
    work = partial(train, plan.model, plan.model_name, plan.trainer, task, pairs, paths, plan.seed, scratch)
    return replace(artifact, work=work)


def checking(plan: Plan, task: HypernetworkTask, trained: Artifact, loras: Mapping[str, Artifact]) -> Artifact:
    """Its losses on the held-out pairs as an artifact of the store."""
    pairs = [[concept.name for concept in pair.concepts] for pair in plan.pairs]
    params = {"draws": task.draws, "seed": plan.seed, "pairs": pairs}
    inputs = {"hypernetwork": [trained], **inputs_of(plan.pairs, loras)}
    paths = {name: plan.path(item) / "lora.safetensors" for name, item in loras.items()}
    file = plan.path(trained) / FILE
    work = partial(check, plan.model, plan.trainer, task, plan.pairs, paths, file, plan.seed)
    count = len(plan.pairs)
    return Artifact("held_out", plan.model_name, VERSION, params, work, inputs, count, 12.0 * count * task.draws)


def inputs_of(pairs: Sequence[Pair], loras: Mapping[str, Artifact]) -> dict[str, list[Artifact]]:
    """Return the LoRAs of the pairs, in their order."""
    return {"loras": [loras[concept.name] for pair in pairs for concept in pair.concepts]}


def train(
    model: ModelFiles, name: str, trainer: TrainerSpec, task: HypernetworkTask, pairs: Sequence[Pair],
    paths: Mapping[str, Path], seed: int, scratch: Path, folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """What a worker does: hypernetwork.safetensors, its curves and its cost."""
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
    how = {key: getattr(task, key) for key in ("epochs", "lr", "lambda_similarity", "layers")}
    network.save(folder / FILE, {"model": name, "trained_on": names, "seed": seed, **how})
    curves.write(folder)


def check(
    model: ModelFiles, trainer: TrainerSpec, task: HypernetworkTask, pairs: Sequence[Pair], paths: Mapping[str, Path],
    file: Path, seed: int, folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """What a worker does: held_out.csv, a row a pair, way of making masks and term of the loss."""
    from lorabench.lora.adapter import LoRA
    from lorabench.merging.hypernetwork import load
    from lorabench.merging.hypernetwork_training import held_out

    base, network = load_model(model, trainer.accelerator), load(file)
    rows = []
    for done, pair in enumerate(pairs, 1):
        loras: list[LoRA] = [LoRA.load(paths[concept.name]) for concept in pair.concepts]
        found = held_out(base, pair, loras, ways(network), loss_of(task), task.draws, seed)
        rows += [(pair.name, way, term, loss) for way, terms in found.items() for term, loss in terms.items()]
        progress(done)
    pd.DataFrame(rows, columns=["pair", "masks", "term", "loss"]).to_csv(folder / HELD_OUT, index=False)


def loss_of(task: HypernetworkTask) -> ZipLoRA:
    from lorabench.merging.hypernetwork_training import zip_loss

    return zip_loss(task.lambda_similarity, task.layers)


def ways(network: Any) -> dict[str, Any]:
    """The ways of making a layer's masks that are compared."""

    def predicted(updates: Sequence[Factors], layer: Layer) -> list[Tensor]:
        network.to(updates[0].down.device)
        return network(updates, layer.roles)

    def mean(updates: Sequence[Factors], layer: Layer) -> list[Tensor]:
        return [mask.mean().expand_as(mask) for mask in predicted(updates, layer)]

    def ones(updates: Sequence[Factors], layer: Layer) -> list[Tensor]:
        return [each.down.new_ones(layer.in_features) for each in updates]

    return {NAIVE: ones, PREDICTED: predicted, MEAN: mean}


def summary(found: pd.DataFrame, loras: Sequence[dict[str, Any]], own: dict[str, Any], model: str, pairs: int) -> str:
    """Markdown: the loss on the held-out pairs, and what the hypernetwork cost."""
    table = found.pivot_table("loss", "masks", "term", sort=False)
    lines = ["| masks | content | style | both | similarity | loss |", "|---|---:|---:|---:|---:|---:|"]
    for way in table.index:
        content, style, similarity = (float(table.loc[way, term]) for term in ("content", "style", "similarity"))  # pyright: ignore[reportArgumentType]
        numbers = (content, style, content + style, similarity, content + style + similarity)
        lines.append(f"| {way} | {' | '.join(f'{number:.5f}' for number in numbers)} |")
    total = joined_costs(loras)
    notes = [
        f"ZipLoRA's loss on {found['pair'].nunique()} held-out pairs ({', '.join(found['pair'].unique())}).",
        f"Trained for {model} on {pairs} pairs: {own['seconds']:.0f} s and {own['denoiser_passes']:,} rows through "
        f"the denoiser, after {total['seconds']:.0f} s for {len(loras)} LoRAs.",
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"
