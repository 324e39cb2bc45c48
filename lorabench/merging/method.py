"""What a merging method is: the direct merge of two LoRAs, of which a method overrides what it changes.

    y[row] = W x[row] + sum_k scale_k(layer, progress) * o_k . U_k ( r_k . D_k ( i_k . x[row] ) )

with k = content, style (or several of each), `.` elementwise, and the masks o (out), r (rank) and i (in) absent by
default.

A new method is `lorabench/merging/methods/foo.py` (a frozen dataclass: its fields are the types of its settings) and
`conf/method/foo.yaml` (their values and sources). The dataclass becomes the schema of the yaml by being there.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorabench.base import CONF, UserError
from lorabench.config.schemas import LoRASpec
from lorabench.data.pairs import Concept, Role
from lorabench.models.layer import Layer
from lorabench.sampling.branches import Branch, Scale

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors, LoRA
    from lorabench.lora.layer import AllMasks
    from lorabench.merging.step import MergeStep

_METHODS: dict[str, type[Method]] = {}
# each: every concept by itself, so that methods share them.  core: likewise, in a fixed basis of the layer's own
# (stages/layers.py).  one: one LoRA for all concepts of a pair.  aligned: content and style side by side, from a
# picture before and after styling (stages/aligned.py).
Training = Literal["each", "core", "one", "aligned"]
PER_PAIR: tuple[Training, ...] = ("one", "aligned")  # no other pair has the LoRAs


@dataclass(kw_only=True)
class FitSpec:
    """How the masks of a merge are learned, with Adam.

    batch: content images and style images a step, as many of each, drawn with replacement.
    """

    steps: int
    lr: float
    batch: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.lr <= 0:
            raise UserError(f"fit={vars(self)} learns nothing; give steps and batch of at least 1, lr greater than 0")


@dataclass(frozen=True, kw_only=True)
class Method:
    """The direct merge; adapters come in the order contents, styles.

    version: Number to raise when the same settings and LoRAs give other results; then exactly what depends on them is
        recomputed.
    name: the file in lorabench/merging/methods.
    fit: how the masks are learned; None for a method that takes no optimiser steps.
    concepts: of several subjects or styles, "joint" merges all LoRAs at once; "uniform" averages the merges of each
        subject with each style, our reading of DuoLoRA's "uniform-weight merging".
    exports: whether a merge is one ordinary LoRA; images are then drawn with that very file.
    rank: of the file where merged updates are dense, a setting of those methods; see `rank_at`.
    training: how the LoRAs are trained that it merges.
    needs_images: whether a merge that asks the network (`needs_model`) shows it images of the concepts.
    """

    version: ClassVar[int] = 1
    training: ClassVar[Training] = "each"
    exports: ClassVar[bool] = True
    needs_images: ClassVar[bool] = True
    rank: ClassVar[int | None] = None

    name: str
    fit: FitSpec | None
    concepts: str = "joint"

    def __init_subclass__(cls) -> None:
        _METHODS[cls.__module__.rpartition(".")[2]] = cls

    @property
    def needs_model(self) -> bool:
        """Whether a merge asks more of the network than the shapes of its layers."""
        return self.fit is not None or type(self).solve is not Method.solve

    def lora(self, role: Role, spec: LoRASpec) -> LoRASpec:
        """How the LoRAs of a role are trained that this method merges."""
        return spec

    def uses(self, role: Role) -> bool:
        """Return False if LoRAs of this role have scale 0 in every layer and step, so that none is trained for it."""
        return True

    def trained_on(self, concept: Concept) -> Concept:
        """The concept with the images, and their captions, that its LoRA is trained on."""
        return concept

    def files(self) -> dict[str, Path]:
        """The settings that name a file: what it holds decides a merge, and not where it lies."""
        return {}

    def rebase(self, loras: Sequence[LoRA]) -> Sequence[LoRA]:
        """The same updates in the factors that the masks act on."""
        return loras

    def check(self, layers: Mapping[str, Layer]) -> None:
        """UserError where the method does not fit the adapted layers; asked before anything is made for it."""

    def masks(self, layers: Mapping[str, Layer], seed: int) -> AllMasks | None:
        """The masks of each adapter by layer: what they are, or, where they are learned, what they start from.

        `seed` belongs to the pair; a random draw is seeded with it and the name of the layer.
        """
        return None

    def combine(self, updates: Sequence[Factors], layer: Layer, seed: int) -> Factors | Tensor | None:
        """The merged update of a layer where it is no masked sum; None is the masked sum.

        updates: of each adapter, of rank 0 where it leaves the layer alone.  seed: of the pair; a random draw is seeded
        with it and the name of the layer.  Returns factors, or the dense update [out, in], which becomes the nearest
        factors of `rank`.
        """
        return None

    def rank_at(self, layer: Layer) -> int:
        """Of the file at a layer whose merged update is dense: `rank`, or the sum of the LoRAs' ranks."""
        return self.rank or sum(layer.ranks)

    @property
    def combines(self) -> bool:
        """Whether merged updates are no masked sums, by `combine` or by a `solve` that returns them."""
        return type(self).combine is not Method.combine

    def solve(self, draw: Callable[[int, int], MergeStep], seed: int) -> AllMasks | LoRA | None:
        """Masks, or merged updates, in closed form from what the LoRAs do on draws; of a method without `fit`.

        draw(step, batch): the seeded draw number `step`, of `batch` images a concept.
        """
        return None

    def loss(self, step: MergeStep, masks: AllMasks) -> dict[str, Tensor]:
        """Weighted terms [pairs] whose sum is minimised over the masks; called once an optimiser step.

        Masks of several pairs in one batch have a leading axis [pairs]: reduce over the last axis only.
        """
        raise NotImplementedError(f"{self.name} learns masks and so needs a loss")

    def steps(self, images: Sequence[int]) -> int:
        """Optimiser steps for concepts with so many training images each."""
        return self.fit.steps if self.fit else 0

    def stop(self, terms: Mapping[str, Tensor]) -> Tensor | None:
        """Which pairs [pairs] have no further step to make after one with these terms; None goes on."""
        return None

    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        """Strength of each adapter; progress = index of the sampling step / number of steps."""
        return (1.0,) * len(layer.ranks)

    def guidance(self, scale: float, roles: Sequence[Role]) -> Sequence[Branch] | None:
        """The branches of a sampling step; None is classifier-free guidance, with all adapters in both branches.

        scale: of classifier-free guidance, 1 without.  A method that has branches is no single LoRA (`exports`).
        """
        return None

    def strengths(self, loras: Sequence[LoRA], layers: Mapping[str, Layer], steps: int) -> Scale:
        """Strength of each adapter by name of the layer and progress, in so many steps; `scale`, unless a rule is read
        off the factors or counts the steps. Called once before sampling, with the layers of the UNet.
        """
        return lambda layer, progress: self.scale(layers[layer], progress)


def methods() -> dict[str, type[Method]]:
    """Every method by name, in alphabetical order."""
    from lorabench.merging import methods as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))


def register() -> None:
    """Make each method the Hydra schema of its yaml (`defaults: [schema/<name>, _self_]`)."""
    for name in methods():
        ConfigStore.instance().store(group="method/schema", name=name, node=_schema(name), package="method")


def build(config: DictConfig | dict[str, Any]) -> Method:
    """The method of a composed config, or of one read back from a run folder."""
    values: Any = {key: value for key, value in config.items() if key != "paper"}  # old run folders have it
    return OmegaConf.to_object(OmegaConf.merge(_schema(values["name"]), values))  # pyright: ignore[reportReturnType]


def load(name: str, ablation: str = "none", **overrides: Any) -> Method:
    """A method with the values of its yaml, without Hydra: `load("duolora", "no_cycle", prior=0.2)`.

    Raises UserError for an unknown name, an ablation that does not fit, and settings that the method does not have.
    """
    known(name, "method")
    known(ablation, "ablation")
    if not _fits(name, ablation):
        raise UserError(misfit(name, ablation, fitting_methods(ablation)))
    try:
        return build(OmegaConf.merge(_values(name, ablation), overrides))  # pyright: ignore[reportArgumentType]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} has no such settings: {reason}; see conf/method/{name}.yaml") from None


def fitting_methods(ablation: str) -> list[str]:
    """The methods that have the settings an ablation changes; every method for one that changes nothing."""
    return [path.stem for path in sorted((CONF / "method").glob("*.yaml")) if _fits(path.stem, ablation)]


def misfit(name: str, ablation: str, fitting: list[str]) -> str:
    """One line on an ablation of another method."""
    return f"ablation={ablation} fits method={'|'.join(fitting)}, not {name}; type method={fitting[0]}"


@cache
def _fits(name: str, ablation: str) -> bool:
    try:
        _values(name, ablation)
    except OmegaConfBaseException:
        return False
    return True


def _values(name: str, ablation: str) -> DictConfig:
    values = _read("method", name)
    return OmegaConf.merge(_schema(values["name"]), values, _read("ablation", ablation))  # pyright: ignore[reportReturnType]


@cache
def _read(group: str, name: str) -> DictConfig:
    """A yaml without what Hydra makes of it; to be merged, never changed."""
    values: Any = OmegaConf.load(CONF / group / f"{name}.yaml")
    values.pop("defaults", None)
    return values


@cache
def _schema(name: str) -> DictConfig:
    """The types of a method's settings, to be merged and never changed. A method is frozen, but not its config."""
    schema = OmegaConf.structured(methods()[name])
    OmegaConf.set_readonly(schema, None)
    for field in fields(methods()[name]):
        if str(field.type).startswith("dict"):  # its keys are the user's
            schema[field.name] = {}
            OmegaConf.set_struct(schema[field.name], False)
    return schema


def known(name: str, group: str) -> None:
    """UserError unless there is a yaml of this name."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if name not in names:
        raise UserError(f"no {group} is called {name}; type {group}=<{'|'.join(names)}>")
