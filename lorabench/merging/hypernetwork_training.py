"""Training of LoRA.rar's hypernetwork (arXiv 2412.05148) with ZipLoRA's loss, on a random pair of LoRAs per epoch.

    L = || e_m(x_c, p_c) - e_c(x_c, p_c) ||^2 + || e_m(x_s, p_s) - e_s(x_s, p_s) ||^2 + lambda sum_l |cos(m_c, m_s)|

e_m is the denoiser with the merge whose masks are predicted, e_k the denoiser with LoRA k only. Steps, teachers and
loss are those of a learned merge (lorabench/merging/step.py, `ziplora`), but the hypernetwork is trained instead of
masks. An epoch has one step per training image of a concept, as in ZipLoRA's code. Pairs and draws are seeded by epoch
and step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lorabench.base import seed_of
from lorabench.config.schemas import TrainerSpec
from lorabench.data.pairs import Pair
from lorabench.engine.checkpoint import Checkpoint
from lorabench.engine.curves import Curves
from lorabench.engine.lightning import Progress, fit
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import AllMasks, Masks
from lorabench.merging.draws import Draws
from lorabench.merging.hypernetwork import Hypernetwork
from lorabench.merging.method import load
from lorabench.merging.methods.lora_rar import is_masked
from lorabench.merging.methods.ziplora import ZipLoRA
from lorabench.models.layer import Layer
from lorabench.models.model import DiffusionModel

Predict = Callable[[Sequence[Factors], Layer], Sequence[Tensor]]  # returns the masks [in] of a layer's updates


def zip_loss(weight: float, layers: str = "sum") -> ZipLoRA:
    """Return ZipLoRA with the settings of LoRA.rar.

    Args:
        weight: Weight lambda of the similarity.
        layers: Reduction of the similarity over layers, "sum" or "mean".
    """
    merge = load("ziplora", lambda_similarity=weight, similarity="cosine", layers=layers).merge
    assert isinstance(merge, ZipLoRA)
    return merge


class Masked:
    """LoRAs on the denoiser with masks that are predicted for each step. `close` removes them.

    Args:
        model: The model.
        draws: Random draws of the pair.
        loras: LoRAs of the pair.
    """

    def __init__(self, model: DiffusionModel, draws: Draws, loras: Sequence[LoRA]):
        self.draws = draws
        self.layers = model.layers.adapted(loras, draws.roles)
        self.adapters = model.attach(loras, dtype=torch.float32)

    def loss(self, method: ZipLoRA, predict: Predict, step: int, batch: int = 1) -> dict[str, Tensor]:
        """Return the weighted terms of a step as scalars.

        Args:
            method: Merge whose loss is computed.
            predict: Function that predicts the masks of a layer.
            step: Number of the step, which seeds its draws.
            batch: Images per concept.
        """
        masks: AllMasks = {}
        for name, layer in self.adapters.layers.items():
            if is_masked(name):
                masks[name] = tuple(Masks(i=mask) for mask in predict(layer.factors(), self.layers[name]))
                layer.masks = masks[name]
        terms = method.loss(self.draws.step(step, batch, self.adapters, self.layers), masks)
        return {name: term.sum() for name, term in terms.items()}

    def close(self) -> None:
        """Remove the LoRAs from the denoiser."""
        self.adapters.detach()


class Predicting(pl.LightningModule):
    """Lightning module that trains a hypernetwork on pairs of trained LoRAs. The model and the LoRAs are frozen.

    Args:
        model: The model.
        network: The hypernetwork.
        pairs: Pairs to train on.
        loras: LoRA of each concept, by name.
        lr: Learning rate of Adam.
        loss: Loss, see `zip_loss`.
        epoch: Steps with one pair.
        seed: Seed of pairs and draws.
    """

    def __init__(
        self,
        model: DiffusionModel,
        network: Hypernetwork,
        pairs: Sequence[Pair],
        loras: Mapping[str, LoRA],
        lr: float,
        loss: ZipLoRA,
        epoch: int,
        seed: int,
    ):
        super().__init__()
        self.model, self.network, self.pairs, self.loras = model, network, pairs, loras
        self.lr, self.method, self.epoch, self.seed = lr, loss, epoch, seed
        self.factors = nn.ParameterList(network.parameters())  # saved in checkpoints
        self.draws: dict[str, Draws] = {}  # by pair, so that its images are encoded once
        self.present: tuple[str, Masked] | None = None  # pair whose LoRAs are on the denoiser

    def training_step(self, step: int) -> Tensor:
        terms = self.at(step // self.epoch).loss(self.method, self.predict, step)
        self.log_dict({name: term.detach() for name, term in terms.items()}, batch_size=1)
        return torch.stack(list(terms.values())).sum()

    def predict(self, updates: Sequence[Factors], layer: Layer) -> list[Tensor]:
        """Return the predicted masks of a layer."""
        return self.network(updates, layer.roles)

    def at(self, epoch: int) -> Masked:
        """Return the LoRAs of the pair of an epoch, on the denoiser."""
        draw = torch.Generator().manual_seed(seed_of("pair", self.seed, epoch))
        pair = self.pairs[int(torch.randint(len(self.pairs), (1,), generator=draw))]
        if self.present is None or self.present[0] != pair.name:
            self.close()
            loras = [self.loras[concept.name] for concept in pair.concepts]
            if pair.name not in self.draws:
                self.draws[pair.name] = Draws(self.model, pair, item_seed("predict", pair, self.seed), loras)
            self.present = pair.name, Masked(self.model, self.draws[pair.name], loras)
        return self.present[1]

    def close(self) -> None:
        """Remove the LoRAs from the denoiser."""
        if self.present is not None:
            self.present[1].close()
            self.present = None

    def configure_optimizers(self) -> Any:
        found = torch.optim.Adam(self.network.parameters(), lr=self.lr)
        return {"optimizer": found, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(found, 1.0)}


def train(
    model: DiffusionModel,
    pairs: Sequence[Pair],
    loras: Mapping[str, LoRA],
    epochs: int,
    lr: float,
    loss: ZipLoRA,
    seed: int,
    trainer: TrainerSpec,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    curves: Curves | None = None,
) -> Hypernetwork:
    """Train the hypernetwork of a model. Its initial weights are torch's, drawn with `seed`.

    Args:
        model: The model.
        pairs: Pairs to train on.
        loras: LoRA of each concept, by name.
        epochs: Number of epochs.
        lr: Learning rate of Adam.
        loss: Loss, see `zip_loss`.
        seed: Seed of weights, pairs and draws.
        trainer: Settings of precision and devices.
        progress: Called after every step with the number of finished steps.
        checkpoint: Checkpoint to resume from and to write.
        curves: Logger for the loss terms.
    """
    widths = {len(each.up) for lora in loras.values() for layer, each in lora.items() if is_masked(layer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("hypernetwork", seed) % 2**31)
        network = Hypernetwork(widths).to(model.device)
    epoch = epoch_of(pairs)
    module = Predicting(model, network, pairs, loras, lr, loss, epoch, seed)
    callbacks = [checkpoint] if checkpoint else []
    start = checkpoint.done if checkpoint else 0
    try:
        fit(module, epochs * epoch, model.device, trainer.precision, progress, curves, callbacks, start)
    finally:
        module.close()
    return network.requires_grad_(False).eval()


def item_seed(use: str, pair: Pair, seed: int) -> int:
    """Return the seed of a pair's draws. It depends on images and words, but not on names."""
    return seed_of(use, *(concept.identity() for concept in pair.concepts), seed)


def epoch_of(pairs: Sequence[Pair]) -> int:
    """Return the steps per epoch: the largest number of images of a concept."""
    return max(concept.weight for pair in pairs for concept in pair.concepts)


def held_out(
    model: DiffusionModel,
    pair: Pair,
    loras: Sequence[LoRA],
    predictors: Mapping[str, Predict],
    loss: ZipLoRA,
    draws: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Return the mean terms of the loss on a pair for several kinds of masks, over the same random draws.

    Args:
        model: The model.
        pair: The pair.
        loras: Its LoRAs.
        predictors: Functions that return a layer's masks, by name.
        loss: Loss, see `zip_loss`.
        draws: Number of random draws.
        seed: Seed of the draws.

    Returns:
        The mean of each term, by name of the predictor.
    """
    masked = Masked(model, Draws(model, pair, item_seed("held out", pair, seed), loras), loras)
    try:
        found: dict[str, dict[str, float]] = {}
        for name, predict in predictors.items():
            with torch.no_grad():
                steps = [masked.loss(loss, predict, step) for step in range(draws)]
            found[name] = {term: float(torch.stack([each[term] for each in steps]).mean()) for term in steps[0]}
        return found
    finally:
        masked.close()
