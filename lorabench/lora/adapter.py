"""Adapters: the result of a training, with all its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.compress import CompressionError, compress
from lorabench.lora.factors import Factors, LazyFactors, Shape, shapes_of
from lorabench.lora.files.names import DENOISER
from lorabench.lora.masks import Masks
from lorabench.lora.parts import Parts

if TYPE_CHECKING:
    from lorabench.lora.files.dora import BaseWeights


class Adapter(Mapping[str, Factors]):
    """Factors by layer of the denoiser, with the other parts as attributes.

    As a mapping, it contains only the layers of the denoiser, because masks and groups of layers refer to these.

    Attributes:
        text: Factors on the text encoders, by "<text encoder>.<module path>".
        tokens: Learned embeddings by trigger and text encoder, [vectors, width].
        masks: Masks by layer that were learned together with the factors. They apply if the adapter is used together
            with others, and not if it is used by itself.
        backbone: Key of the change of the base weights that the adapter was trained on; None: unchanged weights.
        metadata: Strings in the file that it was read from.
    """

    def __init__(
        self,
        factors: Mapping[str, Factors],
        text: Mapping[str, Factors] | None = None,
        tokens: Mapping[str, Mapping[str, Tensor]] | None = None,
        masks: Mapping[str, Masks] | None = None,
        backbone: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        self._factors = _in_order(factors)
        self.text = _in_order(text or {})
        self.tokens = {trigger: dict(encoders) for trigger, encoders in (tokens or {}).items()}
        self.masks = dict(masks or {})
        self.backbone = backbone
        self.metadata = dict(metadata or {})

    def __getitem__(self, layer: str) -> Factors:
        return self._factors[layer]

    def __contains__(self, layer: object) -> bool:
        return layer in self._factors

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)

    @property
    def layers(self) -> list[str]:
        """Return the names of the adapted denoiser layers."""
        return list(self._factors)

    @property
    def factors(self) -> Mapping[str, Factors]:
        """Return the factors of the denoiser, which are read from a file when they are used if the adapter is open."""
        return self._factors

    @property
    def parts(self) -> Parts:
        """Return all parts."""
        return Parts(self._factors, self.text, self.tokens, self.masks, self.backbone, self.metadata)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Return rank, inputs and outputs by layer, including text encoders. Reads no tensors of a file."""
        return self.parts.shapes

    @property
    def rank(self) -> int:
        """Return the highest rank of any layer; 0 without factors."""
        return self.parts.rank

    @property
    def is_empty(self) -> bool:
        """Return whether the adapter has no factors and no tokens."""
        return not (self._factors or self.text or self.tokens)

    def replaced(self, factors: Mapping[str, Factors], text: Mapping[str, Factors] | None = None) -> Adapter:
        """Return the adapter with other factors. If `text` is None, the factors of the text encoders are kept."""
        text = self.text if text is None else text
        return Adapter(factors, text, self.tokens, self.masks, self.backbone, self.metadata)

    def with_tokens(self, tokens: Mapping[str, Mapping[str, Tensor]]) -> Adapter:
        """Return the adapter with these token embeddings."""
        return Adapter(self._factors, self.text, tokens, self.masks, self.backbone, self.metadata)

    def times(self, weight: float) -> Adapter:
        """Return the adapter multiplied by a number; token embeddings are unchanged."""
        if weight == 1:
            return self
        return self.replaced(_times(self._factors, weight), _times(self.text, weight))

    def weighted(self, weight: Callable[[str], float]) -> Adapter:
        """Return the adapter with each layer at a scale of its own; layers of scale 0 are left out.

        Args:
            weight: Returns the scale of a layer "<component>.<module path>".
        """

        def scaled(factors: Mapping[str, Factors], head: str = "") -> LazyFactors:
            kept = {layer: shape for layer, shape in shapes_of(factors).items() if weight(head + layer)}
            return LazyFactors(kept, lambda layer: factors[layer].times(weight(head + layer)))

        return self.replaced(scaled(self._factors, f"{DENOISER}."), scaled(self.text))

    def loaded(self) -> Adapter:
        """Return the adapter with all factors in memory."""
        return self.replaced(dict(self), dict(self.text))

    def svd(self) -> Adapter:
        """Return the same updates in the basis of their singular value decompositions, except for text encoders."""
        return self.replaced({layer: factors.svd() for layer, factors in self.items()})

    def jointly(self) -> Adapter:
        """Return the adapter for joint use with others: its own masks are multiplied into the factors."""
        if not self.masks:
            return self
        factors = {layer: self.masks[layer].masked(each) if layer in self.masks else each
                   for layer, each in self.items()}  # fmt: skip
        return Adapter(factors, self.text, self.tokens, None, self.backbone, self.metadata)

    def unmasked(self) -> Adapter:
        """Return the adapter as it is used on its own: without its masks."""
        return Adapter(self._factors, self.text, self.tokens, None, self.backbone, self.metadata)

    def compressed(self, rank: int | None, keep: float = 1.0) -> tuple[Adapter, CompressionError]:
        """Return the nearest adapter with at most this rank in every layer, and its relative errors.

        Without a rank, each layer has the least one that keeps the share `keep` of its squared norm.
        """
        (factors, text), error = compress([self._factors, self.text], rank, keep)
        return self.replaced(factors, text), error

    @staticmethod
    def stack(adapters: Sequence[Adapter]) -> Adapter:
        """Stack the denoiser factors of adapters with equal shapes along a leading axis [pairs]."""
        return Adapter(
            {
                layer: Factors(
                    torch.stack([each[layer].down for each in adapters]),
                    torch.stack([each[layer].up for each in adapters]),
                )
                for layer in adapters[0]
            }
        )

    def parameters(self, *names: str) -> int:
        """Return the number of parameters in factors of these names ("down", "up"), including text encoders."""
        factors = [*self.values(), *self.text.values()]
        return sum(getattr(each, name).numel() for each in factors for name in names or ("down", "up"))

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the factors by layer. Adapters with equal shapes can be stacked."""
        return {layer: (*each.down.shape, *each.up.shape) for layer, each in self.items()}

    def save(
        self,
        path: Path | str,
        metadata: Mapping[str, str] | None = None,
        format: str = "kohya",
        dtype: str | None = None,
    ) -> list[str]:
        """Write a .safetensors file; layers whose update is zero are left out.

        Args:
            path: The file.
            metadata: Strings about its origin.
            format: "kohya" (ComfyUI, A1111, Forge; diffusers, except for SD3), "diffusers" (diffusers; for SD3 and
                FLUX.1 ComfyUI too), or "store", which keeps every part bitwise.
            dtype: "float32", "float16" or "bfloat16"; None keeps the data types of the factors.

        Returns:
            The layers that the file has, by component and module path; fused ones by their original name.

        Raises:
            UserError: If the format cannot hold a part, or the data type cannot hold the numbers.
        """
        from lorabench.lora.files.write import write

        return write(self.parts, path, metadata, format, dtype)

    @classmethod
    def load(cls, path: Path | str) -> Adapter:
        """Read a file in any naming convention, in fp32, with alpha / rank multiplied into `up`.

        Raises:
            UserError: If the file is not an adapter for layers of an SDXL, SD3 or FLUX.1 model.
        """
        return cls.open(path).loaded()

    @classmethod
    def open(cls, path: Path | str, base: BaseWeights | None = None) -> Adapter:
        """Read a file as `load` does, but read factors from the file each time they are used.

        With the weights of the base model, a DoRA is read too: its updates are folded into factors.
        """
        from lorabench.lora.files.read import read

        return cls(**vars(read(path, base)))


def _times(factors: Mapping[str, Factors], weight: float) -> LazyFactors:
    return LazyFactors(shapes_of(factors), lambda layer: factors[layer].times(weight))


LoRA = Adapter  # the name until version 0.1, to be removed in 0.3


def _in_order(factors: Mapping[str, Factors]) -> Mapping[str, Factors]:
    return factors if isinstance(factors, LazyFactors) else dict(sorted(factors.items()))


def common_backbone(adapters: Sequence[Adapter]) -> str | None:
    """Return the backbone that all adapters were trained on.

    Raises:
        UserError: If the backbones differ.
    """
    found = {each.backbone for each in adapters}
    if len(found) > 1:
        names = ", ".join(sorted(each or "the plain model" for each in found))
        raise UserError(f"the adapters were trained on different base weights ({names}); merge those of one backbone")
    return found.pop() if found else None


def in_basis(adapters: Sequence[Adapter], basis: str) -> Sequence[Adapter]:
    """Return the same updates as trained factors ("raw") or as singular value decompositions ("svd")."""
    return [each.svd() for each in adapters] if basis == "svd" else adapters
