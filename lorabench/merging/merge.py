"""Stage 2: merge the LoRAs of a pair by a method."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning.loggers import Logger
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import TrainerSpec
from lorabench.data.pairs import Pair, Role
from lorabench.engine.lightning import Progress, curve, fit
from lorabench.lora.adapter import LoRA
from lorabench.lora.effective_rank import effective_rank
from lorabench.lora.layer import AllMasks, Masks, export, learned_params, weighted_text
from lorabench.merging.combine import combine, scaled
from lorabench.merging.learn import Draws, Merging
from lorabench.merging.method import Method
from lorabench.models.layer import Layer
from lorabench.models.layer_map import LayerMap, text_layers
from lorabench.models.model import DiffusionModel

Ranks = dict[str, list[float]]  # by layer, one an adapter


@dataclass(frozen=True)
class MergeItem:
    """LoRAs to merge, in the order of the pair's concepts."""

    loras: tuple[LoRA, ...]
    pair: Pair


@dataclass(frozen=True)
class MergeResult:
    """What a merge is, on the CPU.

    lora: the merge as one ordinary LoRA of rank sum_k r_k.
    masks: by layer, one an adapter; None where the method has none.
    learned_params: how many numbers were learned.
    losses: the weighted terms by name, one value a step.
    ranks: the effective rank of each adapter's masked update; empty where there is none or it was not measured.
    error: relative distance of the file from what the method asks for, where its rank keeps it from that.
    """

    lora: LoRA
    masks: AllMasks | None
    learned_params: int
    losses: dict[str, list[float]]
    ranks: Ranks
    error: float = 0.0

    def is_masked_sum(self, method: Method) -> bool:
        """Whether it is the LoRAs at masks and scales; else strengths cannot be changed afterwards."""
        return self.masks is not None or not (method.combines or method.needs_model)

    def save(self, folder: Path) -> None:
        """Write merged.safetensors (diffusers' format), masks.safetensors where there are masks, and merge.json.

        UserError where the merge is not finite.
        """
        self.lora.save(folder / "merged.safetensors", format="store")
        if self.masks is not None:
            named = {
                f"{layer}|{k}|{kind}": tensor.clone()  # masks that share their memory are written apart
                for layer, masks in self.masks.items()
                for k, mask in enumerate(masks)
                for kind, tensor in mask.named().items()
            }
            save_file(named, folder / "masks.safetensors")
        facts = {
            "learned_params": self.learned_params, "losses": self.losses, "ranks": self.ranks, "error": self.error
        }  # fmt: skip
        (folder / "merge.json").write_text(json.dumps(facts))

    @classmethod
    def load(cls, folder: Path) -> MergeResult:
        facts = json.loads((folder / "merge.json").read_text())
        masks = None
        if (folder / "masks.safetensors").is_file():
            kinds: dict[str, list[dict[str, Tensor]]] = {
                layer: [{} for _ in ranks] for layer, ranks in facts["ranks"].items()
            }
            for name, tensor in load_file(folder / "masks.safetensors").items():
                layer, k, kind = name.split("|")
                kinds[layer][int(k)][kind] = tensor
            masks = {layer: tuple(Masks(**each) for each in all_kinds) for layer, all_kinds in kinds.items()}
        return cls(LoRA.load(folder / "merged.safetensors"), masks, **facts)


def merge_all(
    model: DiffusionModel,
    method: Method,
    items: Sequence[MergeItem],
    seed: int,
    trainer: TrainerSpec,
    progress: Progress | None = None,
    logger: Logger | None = None,
) -> list[MergeResult]:
    """Merge the LoRAs of each item, several subjects or styles in the way that the method wants.

    Every draw is seeded by the pair's images and words, `seed` and the step.
    progress: called after every step with the optimiser steps done so far, summed over the items.
    """
    if method.concepts == "joint" or all(item.pair.is_single for item in items):
        return merge_pairs(model, method, items, seed, trainer, progress, logger)
    results, done = [], 0
    for item in items:

        def tell(steps: int, start: int = done) -> None:
            if progress:
                progress(start + steps)

        results.append(uniform(model, method, item, seed, trainer, tell, logger))
        done += method.fit.steps * max(1, len(item.pair.couples)) if method.fit else 0
    return results


def merge_pairs(
    model: DiffusionModel,
    method: Method,
    items: Sequence[MergeItem],
    seed: int,
    trainer: TrainerSpec,
    progress: Progress | None = None,
    logger: Logger | None = None,
) -> list[MergeResult]:
    """Merge pairs, those whose LoRAs have the same shape side by side in one batch if the method learns."""
    rebased = [MergeItem(tuple(method.rebase(item.loras)), item.pair) for item in items]
    if not method.needs_model:
        return [given(model.layers, method, item, seed) for item in rebased]
    if method.fit is None:
        return [closed(model, method, item, seed) for item in rebased]
    alike: dict[str, list[int]] = {}
    for index, item in enumerate(rebased):
        alike.setdefault(str((item.pair.roles, [lora.shape for lora in item.loras])), []).append(index)
    results: dict[int, MergeResult] = {}
    for indices in alike.values():
        start, count = method.fit.steps * len(results), len(indices)

        def tell(steps: int, start: int = start, count: int = count) -> None:
            if progress:
                progress(start + steps * count)

        made = learned(model, method, [rebased[index] for index in indices], seed, trainer, tell, logger)
        results.update(zip(indices, made, strict=True))
    return [results[index] for index in range(len(items))]


def learned(
    model: DiffusionModel,
    method: Method,
    items: Sequence[MergeItem],
    seed: int,
    trainer: TrainerSpec,
    progress: Progress,
    logger: Logger | None,
) -> list[MergeResult]:
    """Learn the masks of pairs of one shape."""
    first, *others = items
    layers = fitting_layers(model.layers, method, first)
    seeds = [item_seed(item.pair, seed) for item in items]
    starts = [method.masks(layers, each) or {} for each in seeds]
    loras = first.loras
    if others:
        loras = [LoRA.stack(alike) for alike in zip(*(item.loras for item in items), strict=True)]
    with model.attach(loras, dtype=torch.float32) as adapters:
        draws = [Draws(model, item.pair, own, item.loras) for item, own in zip(items, seeds, strict=True)]
        module = Merging(adapters, layers, method, starts, [item.pair for item in items], draws)
        fit(module, max(module.steps), model.device, trainer.precision, progress, logger)
    curves = [{name: curve(values) for name, values in losses.items()} for losses in module.losses]
    return [
        result_of(method, item, layers, masks, learned_params(start), losses)
        for item, masks, start, losses in zip(items, module.results, starts, curves, strict=True)
    ]


def given(model: LayerMap, method: Method, item: MergeItem, seed: int, ranked: bool = True) -> MergeResult:
    """A merge that asks nothing of the model but the shapes of its layers.

    ranked: measure effective ranks too, which takes longer than the merge.
    """
    layers, seed = fitting_layers(model, method, item), item_seed(item.pair, seed)
    if method.combines:
        lora, error = combine(method, item.loras, layers, seed)
        return MergeResult(lora, None, 0, {}, {}, error)
    return result_of(method, item, layers, method.masks(layers, seed), 0, {}, ranked)


def closed(model: DiffusionModel, method: Method, item: MergeItem, seed: int) -> MergeResult:
    """A merge without optimiser steps, from what the network does on a few draws."""
    layers = fitting_layers(model.layers, method, item)
    seed = item_seed(item.pair, seed)
    draws = Draws(model, item.pair, seed, item.loras)
    with model.attach(item.loras, dtype=torch.float32) as adapters:
        found = method.solve(lambda step, batch: draws.step(step, batch, adapters, layers), seed)
    if isinstance(found, LoRA):
        return MergeResult(LoRA(found, weighted_text(item.loras, None)), None, 0, {}, {})
    return result_of(method, item, layers, found, learned_params(found or {}), {})


def uniform(
    model: DiffusionModel,
    method: Method,
    item: MergeItem,
    seed: int,
    trainer: TrainerSpec,
    progress: Progress | None,
    logger: Logger | None,
) -> MergeResult:
    """The mean of the merges of each content with each style: their updates average, so their masks do."""
    pair = item.pair
    if method.combines:
        raise UserError(f"{method.name} has no masks to average; type method.concepts=joint")
    if pair.is_single:
        return merge_pairs(model, method, [item], seed, trainer, progress, logger)[0]
    couples = [tuple(pair.concepts.index(concept) for concept in couple.concepts) for couple in pair.couples]
    singles = [
        MergeItem((item.loras[c], item.loras[s]), couple) for couple, (c, s) in zip(pair.couples, couples, strict=True)
    ]
    parts = merge_pairs(model, method, singles, seed, trainer, progress, logger)
    loras = tuple(method.rebase(item.loras))
    layers = model.layers.adapted(loras, pair.roles)
    masks = {
        name: tuple(mean_masks(parts, couples, layer, k) for k in range(len(loras))) for name, layer in layers.items()
    }
    losses = {
        f"{name} {part.pair.name}": values
        for part, result in zip(singles, parts, strict=True)
        for name, values in result.losses.items()
    }
    learned = sum(part.learned_params for part in parts)
    return result_of(method, MergeItem(loras, pair), layers, masks, learned, losses)


def mean_masks(parts: Sequence[MergeResult], couples: Sequence[tuple[int, ...]], layer: Layer, adapter: int) -> Masks:
    """The mean over all couples of an adapter's masks at a layer; zero in the couples that it is no part of."""
    mine = [
        part.masks[layer.name][couple.index(adapter)] if part.masks else Masks(r=torch.ones(layer.ranks[adapter]))
        for part, couple in zip(parts, couples, strict=True)
        if adapter in couple and layer.name in part.lora
    ]
    kinds = mine[0].named() if mine else ()
    return Masks(**{kind: torch.stack([mask.named()[kind] for mask in mine]).sum(0) / len(couples) for kind in kinds})


def result_of(
    method: Method,
    item: MergeItem,
    layers: Mapping[str, Layer],
    masks: AllMasks | None,
    learned_params: int,
    losses: dict[str, list[float]],
    ranked: bool = True,
) -> MergeResult:
    ranks = {}
    for layer in layers if ranked else ():
        ranks[layer] = []
        for k, lora in enumerate(item.loras):
            factors = lora.get(layer)
            if factors is not None and masks:
                factors = masks[layer][k].masked(factors)
            ranks[layer].append(0.0 if factors is None else effective_rank(factors.down, factors.up))
    everywhere = {**layers, **text_layers(item.loras, item.pair.roles)}
    merged = export(item.loras, masks, {name: method.scale(layer, 0.0) for name, layer in everywhere.items()})
    return MergeResult(merged, masks, learned_params, losses, ranks)


def fitting_layers(model: LayerMap, method: Method, item: MergeItem) -> dict[str, Layer]:
    """The adapted layers by name; UserError where the LoRAs do not fit the model, or the method them."""
    layers = model.adapted(item.loras, item.pair.roles)
    method.check(layers)
    return layers


def at_strength(
    model: DiffusionModel,
    method: Method,
    result: MergeResult,
    loras: Callable[[], Sequence[LoRA]],
    pair: Pair,
    strength: Mapping[Role, float],
    seed: int,
    trainer: TrainerSpec,
) -> tuple[MergeResult, Mapping[Role, float] | None]:
    """A merge with all LoRAs of a role at another strength, and what of that is still to be applied while drawing: all
    of it to a masked sum; nothing to a merge of another kind, which is made anew of weaker LoRAs.
    """
    if result.is_masked_sum(method):
        return result, strength
    weaker = tuple(scaled(lora, strength[role]) for lora, role in zip(loras(), pair.roles, strict=True))
    [result] = merge_all(model, method, [MergeItem(weaker, pair)], seed, trainer)
    return result, None


def item_seed(pair: Pair, seed: int) -> int:
    return seed_of("merge", *(concept.identity() for concept in pair.concepts), seed)
