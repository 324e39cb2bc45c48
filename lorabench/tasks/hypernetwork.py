"""task=hypernetwork: train LoRA.rar's hypernetwork (arXiv 2412.05148) for a model, and test it on held-out pairs.

    python run.py task=hypernetwork                                   # for model=micro: minutes on a CPU
    python run.py method=lora_rar method.weights=outputs/adhoc/hypernetwork-s0/hypernetwork.safetensors

LoRAs of `task.subjects` and `task.styles` are trained, and the hypernetwork is trained on their pairs. The held-out
pairs are those of `dataset`; subjects and styles of theirs or of any experiment must not be trained on. ZipLoRA's loss,
averaged over the same random draws, is computed on them with three kinds of masks: the predicted masks, masks of one
(the direct merge), and for each layer the mean of its predicted mask in all columns. The last shows whether the columns
matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lorabench.base import EXPERIMENTS, UserError
from lorabench.config.dataset_schemas import DatasetSpec, MicroworldSpec
from lorabench.config.task_schemas import HypernetworkTask
from lorabench.data.catalogue import load_pairs
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts
from lorabench.engine.artifact import Artifact
from lorabench.engine.costs import COST_FILE, joined_costs
from lorabench.engine.devices import device_name
from lorabench.engine.make import make
from lorabench.personalization.schemes.dreambooth import dreambooth
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.hypernetwork_jobs import FILE, HELD_OUT, checking, training
from lorabench.tasks.plan import Plan
from lorabench.tasks.rows import Row

# In an experiment's file: the rule by which it chooses pairs.
RULE = re.compile(r"\bpairs['\"]?\s*[:=].*\bmatched\b|\b(subjects|styles)['\"]?\s*[:=].*\ball\b")
TRAINS_NOTHING = "calibration"  # experiment without training or merging


def run(cfg: DictConfig, folder: Path) -> str:
    """Write hypernetwork.safetensors (float16), held_out.csv and hypernetwork.md, and print the last one."""
    import torch

    from lorabench.merging import hypernetwork

    task: Any = OmegaConf.to_object(cfg.task)
    plan = plan_of(cfg, [Row.of("direct")])
    dataset: Any = OmegaConf.to_object(cfg.dataset)
    pairs = training_pairs(task, dataset, Prompts(**cfg.prompts))
    check_single([*pairs, *plan.pairs])
    check_disjoint(pairs, plan.pairs)
    device_name(plan.trainer.accelerator)  # raises UserError if there is no such device
    seen, unseen = trainings(plan, pairs), trainings(plan, plan.pairs)
    trained = training(plan, task, pairs, seen)
    checked = checking(plan, task, trained, unseen)
    make(plan.store, plan.trainer, [*seen.values(), *unseen.values(), checked])

    made = plan.path(trained) / FILE
    hypernetwork.load(made).save(folder / FILE, hypernetwork.about(made), torch.float16)
    found = pd.read_csv(plan.path(checked) / HELD_OUT)
    found.to_csv(folder / HELD_OUT, index=False)
    costs = [json.loads((plan.path(item) / COST_FILE).read_text()) for item in (*seen.values(), trained)]
    text = summary(found, costs[:-1], costs[-1], plan.model_name, len(pairs))
    (folder / "hypernetwork.md").write_text(text, encoding="utf-8")
    print(text)
    return FILE


def trainings(plan: Plan, pairs: Sequence[Pair]) -> dict[str, Artifact]:
    """Return the artifact of each concept's LoRA, trained by DreamBooth."""
    return {
        concept.name: plan.trained.training(dreambooth(concept, plan.lora).job)
        for pair in pairs
        for concept in pair.concepts
    }


def training_pairs(task: HypernetworkTask, dataset: DatasetSpec, prompts: Prompts) -> list[Pair]:
    """Return the pairs of every training subject with every training style, from the same dataset.

    Raises:
        UserError: If there are no names, or a name twice.
    """
    for key, names in (("subjects", task.subjects), ("styles", task.styles)):
        if not names or len(set(names)) < len(names):
            raise UserError(f"task.{key}={list(names)} must be a list of different names; use task.{key}=[a,b]")
    chosen: dict[str, Any] = {"contents": None, "subjects": task.subjects, "styles": task.styles}
    chosen["pairs"] = "crossed" if isinstance(dataset, MicroworldSpec) else "all"
    return load_pairs(replace(dataset, **chosen), prompts)


def check_single(pairs: Sequence[Pair]) -> None:
    """Check that each pair has one subject and one style.

    Raises:
        UserError: If a pair has several.
    """
    if several := next((pair.name for pair in pairs if not pair.is_single), None):
        raise UserError(f"{several} has several subjects or styles; use single pairs (without dataset.contents and +)")


def check_disjoint(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    """Check that training shares no subject and no style with the held-out pairs or with an experiment.

    An experiment uses the names in its file. One that chooses pairs by a rule can use every held-out name.

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
                    f"{used[concept.name]} {concept.name}, which the hypernetwork must not be trained on; "
                    f"leave it out of task.{key}"
                )


def summary(found: pd.DataFrame, loras: Sequence[dict[str, Any]], own: dict[str, Any], model: str, pairs: int) -> str:
    """Return Markdown: the loss on the held-out pairs and the cost of the hypernetwork."""
    table = found.pivot_table("loss", "masks", "term", sort=False)
    lines = ["| masks | content | style | both | similarity | loss |", "|---|---:|---:|---:|---:|---:|"]
    for masks in table.index:
        content, style, similarity = (float(table.loc[masks, term]) for term in ("content", "style", "similarity"))  # pyright: ignore[reportArgumentType]
        numbers = (content, style, content + style, similarity, content + style + similarity)
        lines.append(f"| {masks} | {' | '.join(f'{number:.5f}' for number in numbers)} |")
    total = joined_costs(loras)
    notes = [
        f"ZipLoRA's loss on {found['pair'].nunique()} held-out pairs ({', '.join(found['pair'].unique())}).",
        f"Trained for {model} on {pairs} pairs: {own['seconds']:.0f} s and {own['denoiser_passes']:,} rows through "
        f"the denoiser, after {total['seconds']:.0f} s for {len(loras)} LoRAs.",
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"
