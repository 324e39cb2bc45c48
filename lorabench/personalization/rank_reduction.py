"""Learning which outputs of the denoiser to remove: bases B by layer, see lorabench.lora.projection.

    minimize over B_k    E || e_{W - Q_k Q_k^T W}(x_t, t, p) - target ||^2  on the images of source k
                         + perceptual L_perc + penalty sum_l ||B_k||_F^2 + cross sum_l ||Q_1^T Q_2||_F^2

Every source has bases of its own. All sources are rows of one batch, and each row uses the bases of its source, so that
a basis learns from its own images only. PaRa (arXiv 2406.05641) has one source and the first term; CRAFT-LoRA
(arXiv 2602.18936) has content images and style images.

The gradient is orthogonal to B, as the change depends on its span only. So the Frobenius penalty of CRAFT-LoRA cannot
change what is learned except through the step size relative to the length of B; `cross` is ours and off by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import Reference
from lorabench.lora.adapter import Adapter
from lorabench.lora.layer import linear_at
from lorabench.lora.projection import Bases, Projected, projected, reductions
from lorabench.models.model import DiffusionModel
from lorabench.personalization.dreambooth import denoised, weighted_mse
from lorabench.personalization.optimizers import optimiser, schedule
from lorabench.personalization.perceptual import Perceptual
from lorabench.personalization.resumable import fit_resumable
from lorabench.personalization.training import Environment
from lorabench.personalization.views import Batch, Views, views


@dataclass(frozen=True)
class Terms:
    """Weights of the further terms of the loss.

    Args:
        penalty: Weight of the squared length of all bases.
        cross: Weight of the overlap of the subspaces of two sources.
        perceptual: Distance of features of the clean estimate, or None.
    """

    penalty: float = 0.0
    cross: float = 0.0
    perceptual: Perceptual | None = None


class RankReduction(pl.LightningModule):
    """Trains the bases of all sources; the batches are numbers of forwards.

    Args:
        layers: The layers that are changed, on the denoiser.
        bases: One per source.
        sources: Images of each source.
        spec: Recipe; each step has `spec.batch` images of every source.
    """

    def __init__(
        self,
        model: DiffusionModel,
        layers: Mapping[str, Projected],
        bases: Sequence[Bases],
        sources: Sequence[Views],
        spec: LoRASpec,
        terms: Terms,
        seed: int,
    ):
        super().__init__()
        self.model, self.layers, self.sources = model, dict(layers), sources
        self.spec, self.terms, self.seed = spec, terms, seed
        self.bases = nn.ModuleList(bases)
        self.factors = nn.ParameterList(stack for each in bases for stack in each.stacks)
        for each in sources:  # all prompts now, so that the text encoders are not needed again
            model.encode_prompts(each.prompts)

    def training_step(self, forward: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed_of(self.seed, forward))
        batches = [each.draw(self.model, self.spec.batch, draw) for each in self.sources]
        batch = batches[0]
        for each in batches[1:]:
            batch = batch.join(each)
        loss = self.loss(batch)
        self.log("loss", loss.detach(), batch_size=1)
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch with `spec.batch` rows of each source, in the order of the sources."""
        q = self.set_bases()
        prediction, target = denoised(self.model, batch, self.model.encode_prompts(batch.prompts))
        weight = self.model.process.loss_weight(batch.t, self.spec)
        loss = prediction.new_zeros(())
        for source in range(len(self.bases)):
            rows = slice(source * self.spec.batch, (source + 1) * self.spec.batch)
            each = None if weight is None else weight[rows]
            loss = loss + weighted_mse(prediction[rows], target[rows], each)
        if self.terms.perceptual is not None:
            loss = loss + self.terms.perceptual(self.model, batch, prediction)
        if self.terms.penalty:
            loss = loss + self.terms.penalty * sum(stack.square().sum() for stack in self.factors)
        if self.terms.cross:
            loss = loss + self.terms.cross * sum((q[0][name].mT @ q[1][name]).square().sum() for name in q[0])
        return loss

    def set_bases(self) -> list[dict[str, Tensor]]:
        """Put the present bases on the layers, those of source k in the rows of source k; returns them."""
        q: list[dict[str, Tensor]] = [each.orthonormal() for each in self.bases]  # pyright: ignore[reportCallIssue]
        eye = torch.eye(len(q), device=self.model.device).repeat_interleave(self.spec.batch, dim=0)
        known: dict[tuple[int, ...], Tensor] = {}  # layers of equal ranks share their scales
        for name, layer in self.layers.items():
            ranks = tuple(each[name].shape[1] for each in q)
            if ranks not in known:
                known[ranks] = eye.repeat_interleave(torch.tensor(ranks, device=eye.device), dim=1)
            layer.q = torch.cat([each[name] for each in q], dim=1)
            layer.scale = known[ranks] if len(q) > 1 else None
        return q

    def configure_optimizers(self) -> Any:
        found = optimiser(self.spec, [{"params": list(self.factors), "lr": self.spec.lr}])
        return {"optimizer": found, "lr_scheduler": {"scheduler": schedule(found, self.spec), "interval": "step"}}


def learn_bases(
    model: DiffusionModel,
    sources: Sequence[Sequence[Reference]],
    ranks: Mapping[str, int],
    init: str,
    spec: LoRASpec,
    seed: int,
    env: Environment,
    terms: Terms = Terms(),
) -> list[Adapter]:
    """Return the rank reduction of each source.

    Args:
        sources: Images with captions.
        ranks: Rank by layer.
        init: See `start`.
        spec: Optimizer, steps, batch and views.
        seed: Of all random draws.
        env: Progress, curves, and the folder from which a killed training resumes.

    Raises:
        UserError: If a rank leaves nothing of a layer.
    """
    bases = [
        Bases(start(model, ranks, init, seed_of(seed, "basis", source), source, len(sources))).to(model.device)
        for source in range(len(sources))
    ]
    shown = [views(model, each, spec.flips, spec.crops, seed, spec.timesteps) for each in sources]
    with projected(model.denoiser, list(ranks)) as layers:
        module = RankReduction(model, layers, bases, shown, spec, terms, seed)
        fit_resumable(module, spec, env, spec.steps)
    return [reductions(model.denoiser, each.starts()) for each in bases]


def start(
    model: DiffusionModel, ranks: Mapping[str, int], init: str, seed: int, source: int = 0, sources: int = 1
) -> dict[str, Tensor]:
    """Return the bases B [out, rank] by layer before training, with columns of length 1 in the mean.

    "random" removes rank / out of a layer's output energy. "bottom_svd" starts from the left singular vectors with the
    smallest singular values, which removes least. Sources take these in turn: bases that start equal would span, after
    training, the small differences between them, which are directions of any importance.

    Args:
        source: Number of the source whose bases are returned.
        sources: Number of sources.
    """
    found = {}
    for name, rank in ranks.items():
        weight = linear_at(model.denoiser, name).weight.detach().float().cpu()
        if rank >= len(weight):
            raise UserError(f"a rank of {rank} leaves nothing of {name}; use a rank of at most {len(weight) - 1}")
        if init == "bottom_svd":
            vectors = torch.linalg.svd(weight, full_matrices=True).U.flip(1)
            own_first = sorted(range(len(weight)), key=lambda place: (place % sources != source, place))
            found[name] = vectors[:, own_first[:rank]].contiguous()
        else:
            draw = torch.Generator().manual_seed(seed_of(seed, name))
            found[name] = torch.randn(len(weight), rank, generator=draw) / len(weight) ** 0.5
    return found
