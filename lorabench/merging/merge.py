"""Merges: combine the adapters of a pair. The merge is the second of the three components of a method.

There are three kinds of merges, each with its own file: `MaskedSum` (masked.py), `LearnedMasks` (learned.py) and
`LayerwiseMerge` (layerwise.py). A new merge is a class of one kind in lorabench/merging/methods/<name>.py.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lorabench.base import seed_of
from lorabench.config.components import overrides
from lorabench.config.schemas import TrainerSpec
from lorabench.config.settings import check_settings
from lorabench.data.concepts import Role
from lorabench.data.pairs import Pair
from lorabench.models.layer import Layer
from lorabench.models.layer_map import LayerMap

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA
    from lorabench.lora.layer import AllMasks
    from lorabench.models.model import DiffusionModel
    from lorabench.sampling.parts import Parts


@dataclass(frozen=True)
class Activations:
    """Second moments of activations that a merge needs, see lorabench.merging.moments.

    Args:
        draws: Number of teacher passes.
        batch: Images of each concept per pass.
        noise: Use pure noise at the noisiest timestep instead of noised images.
        inputs: Moments of a layer's inputs instead of those after `down`.
    """

    draws: int
    batch: int
    noise: bool = False
    inputs: bool = False


@dataclass(frozen=True)
class MergeItem:
    """Adapters to merge, in the order of the pair's concepts."""

    loras: tuple[LoRA, ...]
    pair: Pair

    def seed(self, seed: int) -> int:
        """Return the seed of this pair's random draws, given the seed of the run."""
        return seed_of("merge", *(concept.identity() for concept in self.pair.concepts), seed)


@dataclass(frozen=True)
class MergeEnvironment:
    """The model, seed and settings that a merge needs.

    Args:
        layers: The layers of the model.
        model: The model; None if `Merge.needs_model` is False.
        seed: Seed of the run.
        trainer: Settings of precision and devices.
        progress: Called with the number of finished optimizer steps, summed over the items.
        share: Called with the share of finished layers, by merges without optimizer steps.
    """

    layers: LayerMap
    model: DiffusionModel | None
    seed: int
    trainer: TrainerSpec
    progress: Callable[[int], None] | None = None
    share: Callable[[float], None] | None = None

    def shifted(self, start: int, count: int = 1) -> MergeEnvironment:
        """Return the environment for a part of the work, whose steps count `count` times, after `start` steps."""
        if self.progress is None:
            return self
        report = self.progress
        return replace(self, progress=lambda steps: report(start + steps * count))


@dataclass(frozen=True)
class Merged:
    """The result of a merge, on the CPU.

    Args:
        file: The merge as one LoRA.
        masks: Masks by layer, one per adapter; None if there are none.
        learned_params: Number of learned parameters.
        losses: Weighted loss terms by name, one value per step.
        ranks: Effective rank of each adapter's masked update by layer; empty if it was not measured.
        error: Relative error of the file, if its rank is too low for the exact merge.
    """

    file: LoRA
    masks: AllMasks | None = None
    learned_params: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)
    ranks: dict[str, list[float]] = field(default_factory=dict)
    error: float = 0.0

    def save(self, folder: Path) -> None:
        """Write merged.safetensors (in diffusers' convention), masks.safetensors if there are masks, and merge.json.

        Raises:
            UserError: If the merge is not finite.
        """
        from safetensors.torch import save_file

        self.file.save(folder / "merged.safetensors", format="store")
        if self.masks is not None:
            named = {
                f"{layer}|{k}|{kind}": tensor.clone()  # masks that share memory are written separately
                for layer, masks in self.masks.items()
                for k, mask in enumerate(masks)
                for kind, tensor in mask.named().items()
            }
            save_file(named, folder / "masks.safetensors")
        facts = {
            "learned_params": self.learned_params, "losses": self.losses, "ranks": self.ranks, "error": self.error,
            "masked": {layer: len(masks) for layer, masks in (self.masks or {}).items()},
        }  # fmt: skip
        (folder / "merge.json").write_text(json.dumps(facts))

    @classmethod
    def load(cls, folder: Path) -> Merged:
        """Return the result that `save` has written."""
        from safetensors.torch import load_file

        from lorabench.lora.adapter import LoRA
        from lorabench.lora.layer import Masks

        facts = json.loads((folder / "merge.json").read_text())
        counts: dict[str, int] = facts.pop("masked")
        masks = None
        if (folder / "masks.safetensors").is_file():
            kinds: dict[str, list[dict[str, Tensor]]] = {
                layer: [{} for _ in range(count)] for layer, count in counts.items()
            }
            for name, tensor in load_file(folder / "masks.safetensors").items():
                layer, k, kind = name.split("|")
                kinds[layer][int(k)][kind] = tensor
            masks = {layer: tuple(Masks(**each) for each in several) for layer, several in kinds.items()}
        return cls(LoRA.load(folder / "merged.safetensors"), masks, **facts)


@dataclass(frozen=True, kw_only=True)
class Merge(ABC):
    """A merge. Its fields are its settings.

    Attributes:
        version: Number to raise when the same settings give other results.
        dense: Whether dense updates are formed, which `trainer=gpu` does on a GPU.
        training: The training whose adapters it merges; None merges those of all.
    """

    version: ClassVar[int] = 1
    dense: ClassVar[bool] = False
    training: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_settings("method", self)

    @property
    def activations(self) -> Activations | None:
        """Return the activations that the merge needs; None if the adapters suffice."""
        return None

    @property
    def needs_model(self) -> bool:
        """Return whether merging runs the model."""
        return self.activations is not None

    @property
    def needs_images(self) -> bool:
        """Return True if merging needs images of the concepts."""
        return self.activations is not None and not self.activations.noise

    def files(self) -> dict[str, Path]:
        """Return the files among the settings; their contents are part of the key."""
        return {}

    def trained_on(self) -> frozenset[str]:
        """Return the names of the subjects and styles that the files of the merge were trained on."""
        return frozenset()

    def check(self, layers: Mapping[str, Layer]) -> None:
        """Check the adapted layers before any adapter is trained, and the layers of a user's files.

        Raises:
            UserError: If the merge does not fit them.
        """
        return None

    def note(self, layers: Mapping[str, Layer]) -> str | None:
        """Return a sentence on the merge on these layers that belongs below a table; None if there is none."""
        return None

    def uses(self, role: Role) -> bool:
        """Return whether the adapters of a role are used. If not, they are not trained."""
        return True

    def optimizer_steps(self, pair: Pair) -> int:
        """Return the number of optimizer steps for a pair."""
        return 0

    def parts(
        self,
        loras: Sequence[LoRA],
        roles: Sequence[Role],
        masks: AllMasks | None,
        strength: Mapping[Role, float] | None = None,
    ) -> Parts | None:
        """Return the separate adapters for sampling rules; None if the merge does not keep them separate.

        Args:
            loras: The adapters before merging.
            roles: Role of each adapter.
            masks: The masks of `Merged`.
            strength: Additional scale of all adapters of a role.
        """
        return None

    @property
    def keeps_parts(self) -> bool:
        """Return whether the adapters can still be scaled after merging."""
        return overrides(self, Merge, "parts")

    @abstractmethod
    def merge_pairs(self, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]:
        """Merge several pairs. Random draws are seeded by the pair's images and words, the run's seed and the step."""
