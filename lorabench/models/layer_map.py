"""The layers of a model, without its weights. It does not import torch, so that plans are fast.

A layer map has every linear layer of a model by its exact path, in the order of the forward pass, and the groups that
methods use: modules, blocks with attention, depth, and named groups (`Layer.groups`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lorabench.base import UserError
from lorabench.data.concepts import Role
from lorabench.models.layer import Layer, within

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter


@dataclass(frozen=True)
class LayerMap(Mapping[str, Layer]):
    """The linear layers of a denoiser and of its text encoders.

    Args:
        denoiser: Layers of the denoiser by path. The map itself iterates over these.
        text: Layers of the text encoders by path, which starts with the name of the encoder.
        attention: Paths of the attention projections of both, which a LoRA is trained on.
        blocks: Paths of the blocks with attention, each with a short name for figures.
        modules: Paths of the attention modules in them.
        transformer_blocks: Paths of the transformer blocks in those.
        targets: Other sets of layers of the denoiser that LoRAs are trained on, by name.
        convolutions: Convolutions of the denoiser as layers of in x k x k inputs, which files may adapt.
    """

    denoiser: Mapping[str, Layer]
    text: Mapping[str, Layer] = field(default_factory=dict)
    attention: frozenset[str] = frozenset()
    blocks: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    transformer_blocks: tuple[str, ...] = ()
    targets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    convolutions: Mapping[str, Layer] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Layer:
        return self.denoiser[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.denoiser)

    def __len__(self) -> int:
        return len(self.denoiser)

    def trained(self, groups: Sequence[str] = (), targets: str = "attention") -> dict[str, Layer]:
        """Return the layers of the denoiser that a LoRA is trained on.

        Args:
            groups: Paths of modules and names of groups to which the layers are limited; none selects all layers of
                the set.
            targets: "attention" for the attention projections, or the name of another set of layers.

        Raises:
            UserError: If the set does not exist, or a group has no layer of it.
        """
        sets = self.sets
        if targets not in sets:
            raise UserError(f"lora.targets={targets} does not exist for this model; use one of {', '.join(sets)}")
        for each in groups:
            self.check_block(each, "lora.blocks", targets)
        layers = {name: layer for name, layer in self.denoiser.items() if name in sets[targets]}
        return {name: each for name, each in layers.items() if not groups or any(map(each.inside, groups))}

    @property
    def sets(self) -> dict[str, frozenset[str]]:
        """Return the sets of layers that LoRAs are trained on, by the name that `lora.targets` has."""
        return {"attention": self.attention, **self.targets}

    def has(self, block: str, targets: str = "attention") -> bool:
        """Return True if a set has a layer in a module or group; UserError if the set does not exist."""
        return any(layer.inside(block) for layer in self.trained(targets=targets).values())

    def check_block(self, block: str, setting: str, targets: str = "attention") -> None:
        """Check that a LoRA could be trained in a module or group.

        Args:
            block: Path of a module, or name of a group.
            setting: Setting that names it, for the message.
            targets: Set of layers that the LoRA is trained on.

        Raises:
            UserError: If the set has no layer there.
        """
        if self.has(block, targets):
            return
        if wider := next((each for each in self.sets if self.has(block, each)), None):
            raise UserError(f"{setting}={block} has no layer of lora.targets={targets}; use lora.targets={wider}")
        groups = sorted({group for layer in self.trained(targets=targets).values() for group in layer.groups})
        raise UserError(f"{setting}={block} has no layer to adapt; use one of {', '.join([*groups, *self.modules])}")

    def trained_text(self) -> dict[str, Layer]:
        """Return the layers of the text encoders that a LoRA is trained on."""
        return {name: layer for name, layer in self.text.items() if name in self.attention}

    def planned(
        self,
        rank: int,
        roles: Sequence[Role],
        groups: Mapping[Role, Sequence[str]] | None = None,
        targets: str = "attention",
    ) -> dict[str, Layer]:
        """Return the layers that LoRAs will adapt, before they are trained.

        Args:
            rank: Rank of the LoRAs.
            roles: Role of each LoRA.
            groups: Groups of layers by role, if its LoRAs do not adapt the whole set.
            targets: Set of layers that the LoRAs adapt.
        """
        names = [self.trained((groups or {}).get(role, ()), targets) for role in roles]
        return with_ranks(self.denoiser, [dict.fromkeys(each, rank) for each in names], roles)

    def adapted(self, loras: Sequence[Adapter], roles: Sequence[Role]) -> dict[str, Layer]:
        """Return the layers of the denoiser that LoRAs adapt, convolutions too, sorted by name.

        Args:
            loras: Adapters, in the order of the ranks of each layer.
            roles: Role of each LoRA.

        Raises:
            UserError: If a LoRA adapts a layer of denoiser or text encoders that is not there, or has other widths.
        """
        shapes = [lora.shapes for lora in loras]
        every = {**self.convolutions, **self.denoiser}
        for each in shapes:
            for name, shape in each.items():
                check_fit(every.get(name) or self.text.get(name), name, shape)
        ranks = [{name: rank for name, (rank, _, _) in each.items() if name in every} for each in shapes]
        return with_ranks(every, ranks, roles)

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return layers of the denoiser in the order of the forward pass."""
        places = {name: place for place, name in enumerate(self.denoiser)}
        return sorted(names, key=places.__getitem__)

    def block_of(self, name: str) -> str:
        """Return the short name of the block that contains a layer, or its top-level module."""
        return next((short for block, short in self.blocks.items() if within(name, block)), name.partition(".")[0])

    def transformer_block_of(self, name: str) -> str:
        """Return the path of the transformer block that contains a layer, or of the layer's module."""
        found = (block for block in self.transformer_blocks if within(name, block))
        return next(found, name.rpartition(".")[0] or name)


def text_layers(loras: Sequence[Adapter], roles: Sequence[Role]) -> dict[str, Layer]:
    """Return the layers of the text encoders that LoRAs adapt, sorted by name."""
    shapes = [{name: shape for name, shape in lora.shapes.items() if name in lora.text} for lora in loras]
    layers = {name: Layer(name, ins, outs) for each in shapes for name, (_, ins, outs) in each.items()}
    return with_ranks(layers, [{name: rank for name, (rank, _, _) in each.items()} for each in shapes], roles)


def check_fit(layer: Layer | None, name: str, shape: tuple[int, int, int]) -> None:
    """Check that factors of a shape (rank, inputs, outputs) fit the layer of this name.

    Raises:
        UserError: If there is no such layer, or its widths differ.
    """
    if layer is None:
        raise UserError(f"the LoRA adapts {name}, which is not a linear layer here; give a LoRA trained on this model")
    _, inputs, outputs = shape
    if (inputs, outputs) != (layer.in_features, layer.out_features):
        raise UserError(
            f"the LoRA maps {inputs} to {outputs} channels at {name}, the model {layer.in_features} to "
            f"{layer.out_features}; give a LoRA trained on this model"
        )


def with_ranks(
    layers: Mapping[str, Layer], ranks: Sequence[Mapping[str, int]], roles: Sequence[Role]
) -> dict[str, Layer]:
    """Return the layers that appear in the ranks of any adapter, sorted by name as adapters are."""
    names = sorted({name for each in ranks for name in each})
    return {
        name: replace(layers[name], ranks=tuple(each.get(name, 0) for each in ranks), roles=tuple(roles))
        for name in names
    }
