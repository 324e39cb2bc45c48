"""Stage 2: merge a content LoRA and a style LoRA by a method."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorabench.adapters import Adapters, Gates, attach, export, learned_params
from lorabench.config import TrainerSpec
from lorabench.data.pairs import Concept, Pair
from lorabench.lora import LoRA
from lorabench.method import FitSpec, Method, Site
from lorabench.models.sdxl import SDXL, Conditioning, pixels
from lorabench.models.sites import depths
from lorabench.passes import MergeStep, Noised
from lorabench.seeds import seed_of
from lorabench.stages.fitting import Progress, curve, fit

AllGates = dict[str, tuple[Gates, ...]]


@dataclass(frozen=True)
class MergeResult:
    """What a merge is, on the CPU.

    lora: the merge as one ordinary LoRA of rank r_c + r_s.
    gates: by site, one an adapter; None where the method has none.
    learned_params: how many numbers were learned.
    losses: the weighted terms by name, one value a step.
    """

    lora: LoRA
    gates: AllGates | None
    learned_params: int
    losses: dict[str, list[float]]

    def save(self, folder: Path) -> None:
        """Write merged.safetensors (diffusers' format), gates.safetensors where there are gates, and merge.json."""
        self.lora.save(folder / "merged.safetensors")
        if self.gates is not None:
            named = {
                f"{site}|{k}|{kind}": tensor
                for site, gates in self.gates.items()
                for k, gate in enumerate(gates)
                for kind, tensor in gate.named().items()
            }
            save_file(named, folder / "gates.safetensors")
        facts = {"learned_params": self.learned_params, "losses": self.losses}
        (folder / "merge.json").write_text(json.dumps(facts))

    @classmethod
    def load(cls, folder: Path) -> MergeResult:
        gates = None
        if (folder / "gates.safetensors").is_file():
            kinds: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
            for name, tensor in load_file(folder / "gates.safetensors").items():
                site, k, kind = name.split("|")
                kinds.setdefault(site, ({}, {}))[int(k)][kind] = tensor
            gates = {site: tuple(Gates(**each) for each in both) for site, both in kinds.items()}
        facts = json.loads((folder / "merge.json").read_text())
        return cls(LoRA.load(folder / "merged.safetensors"), gates, **facts)


class Merging(pl.LightningModule):
    """Learns the gates of a method; both LoRAs and the model stay as they are."""

    def __init__(
        self,
        model: SDXL,
        adapters: Adapters,
        sites: dict[str, Site],
        method: Method,
        gates: AllGates,
        pair: Pair,
        seed: int,
    ):
        super().__init__()
        assert method.fit is not None
        self.model, self.adapters, self.sites = model, adapters, sites
        self.method, self.seed = method, seed
        self.gates = _map(gates, lambda tensor: nn.Parameter(tensor.to(model.device, torch.float32)))
        for site, layer in adapters.layers.items():
            layer.gates, layer.gated = self.gates[site], True
        self.spec: FitSpec = method.fit
        self.learned = nn.ParameterList(
            tensor for site in self.gates.values() for gate in site for tensor in gate.named().values()
        )
        self.content, self.style = Images(model, pair.content), Images(model, pair.style)
        self.both = model.encode_prompts([pair.prompt])
        self.losses: dict[str, list[Tensor]] = {}

    def loss(self, step: int) -> dict[str, Tensor]:
        """The weighted terms of a step."""
        return self.method.loss(self.draw(step), self.gates)

    def training_step(self, step: int) -> Tensor:
        terms = self.loss(step)
        for name, term in terms.items():
            self.losses.setdefault(name, []).append(term.detach())
        self.log_dict(terms, batch_size=1)
        return torch.stack(list(terms.values())).sum()

    def draw(self, step: int) -> MergeStep:
        """Images, noise and timesteps of a step; one noise and timestep for a content and a style image."""
        draw = torch.Generator().manual_seed(seed_of(self.seed, step))
        size = self.spec.batch
        contents = torch.randint(len(self.content.latents), (size,), generator=draw)
        styles = torch.randint(len(self.style.latents), (size,), generator=draw)
        t = torch.randint(len(self.model.alphas_bar), (size,), generator=draw).to(self.model.device)
        noise = torch.randn(size, *self.content.latents.shape[1:], generator=draw).to(self.model.device)

        def noised(images: Images, picks: Tensor) -> Noised:
            return Noised(self.model.add_noise(images.latents[picks], noise, t), images.prompts.take(picks))

        both = self.both.take([0] * size)
        return MergeStep(
            self.model,
            self.adapters,
            self.sites,
            noised(self.content, contents),
            noised(self.style, styles),
            both,
            noise,
            t,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.learned, lr=self.spec.lr)


class Images:
    """A concept's training images as the UNet sees them, computed once."""

    def __init__(self, model: SDXL, concept: Concept):
        self.latents = model.encode_images(pixels([each.image(model.resolution) for each in concept.images]))
        self.prompts: Conditioning = model.encode_prompts([each.prompt for each in concept.images])


def merge(
    model: SDXL,
    method: Method,
    content: LoRA,
    style: LoRA,
    pair: Pair,
    seed: int,
    trainer: TrainerSpec,
    progress: Progress | None = None,
    logger: Logger | None = None,
) -> MergeResult:
    """Merge two LoRAs of a pair.

    Every draw is seeded by the pair's images and words, `seed` and the step.
    progress: called after every step with the optimiser steps done so far, of method.fit.steps (none for fit=None).
    """
    loras = [content, style]
    item = seed_of("merge", pair.content.identity(), pair.style.identity(), seed)
    with attach(model.unet, loras) as adapters:
        sites = live_sites(model, adapters)
        gates = initial_gates(method, sites, item)
        losses = {}
        if gates is not None and method.fit is not None:
            module = Merging(model, adapters, sites, method, gates, pair, item)
            fit(module, method.fit.steps, model.device, trainer.precision, progress, logger)
            losses = {name: curve(values) for name, values in module.losses.items()}
            gates = _map(module.gates, lambda tensor: tensor.detach().cpu())
    learned = learned_params(gates) if gates is not None and method.fit is not None else 0
    gains = {site: method.gain(site, 0.0) for site in adapters.layers}
    return MergeResult(export(loras, gates, gains), gates, learned, losses)


def live_sites(model: SDXL, adapters: Adapters) -> dict[str, Site]:
    """The adapted layers as a method sees them."""
    depth = depths(model.unet, list(adapters.layers))
    return {
        name: Site(name, layer.base.in_features, layer.base.out_features, layer.ranks, depth[name])
        for name, layer in adapters.layers.items()
    }


def initial_gates(method: Method, sites: Mapping[str, Site], seed: int) -> AllGates | None:
    gates = {name: method.gates(site, seed) for name, site in sites.items()}
    present = {name: each for name, each in gates.items() if each is not None}
    return present or None


def _map(gates: AllGates, function: Callable[[Tensor], Tensor]) -> AllGates:
    return {site: tuple(gate.map(function) for gate in each) for site, each in gates.items()}
